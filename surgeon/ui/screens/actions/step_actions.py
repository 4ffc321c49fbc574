"""The pending step: its options, its deferred evaluation, and applying it."""

from __future__ import annotations

from surgeon.core.recipe.learning_step import LearningStep
from surgeon.errors import SurgeonError
from surgeon.ui.screens.actions.evaluation_actions import EvaluationActions, looks
from surgeon.ui.screens.actions.training_actions import TrainingActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.availability import needs_idle_worker
from surgeon.ui.state.pending_step import PendingStep

_PAUSE_CALLS = 3


class StepActions:
    """Evaluates and applies the pending step."""

    def __init__(self, layout: MainLayout, training: TrainingActions, evaluation: EvaluationActions) -> None:
        self._layout, self._state, self._training, self._evaluation = layout, layout.state, training, evaluation
        self._waiting: PendingStep | None = None
        self._unchanged_calls = 0

    def evaluate_after_pause(self) -> None:
        """Evaluate a step whose evaluation is deferred, once it has been unchanged for a few calls."""
        step = self._state.pending_step
        waiting = step if step is not None and not step.evaluated else None
        unchanged = waiting is not None and waiting is self._waiting
        self._unchanged_calls = self._unchanged_calls + 1 if unchanged else 0
        self._waiting = waiting
        if self._unchanged_calls >= _PAUSE_CALLS:
            self._state.evaluate()
            self._layout.refresh_bars()

    def show_step(self, number: int) -> None:
        """Show a step, counted from 1, with the keys that edit it; at the base undo all."""
        from surgeon.ui.screens.step_screen import StepEdit, StepScreen

        if not number:
            self._state.go_to(0)
            self._layout.reload()
            return

        def edited(edit: StepEdit) -> None:
            try:
                self._state.edit_step(number - 1, edit)
            except SurgeonError as error:
                self._state.set_notice(f"nothing is changed: {error}", "error")
            self._layout.reload()

        self._layout.app.push_screen(StepScreen(self._state, number - 1, edited))

    def edit_options(self) -> None:
        """Open the form of the pending step's options."""
        from surgeon.ui.screens.options_form import OptionsForm

        self._state.evaluate()
        if self._state.pending_step is not None:
            form = OptionsForm(self._state, self._state.pending_step)
            self._layout.app.push_screen(form, self._options_edited)

    def _options_edited(self, fields: dict[str, object] | None) -> None:
        if fields is not None and self._state.pending_step is not None:
            self._state.set_fields(fields)
            self._layout.refresh_selection()

    def apply_pending_step(self) -> None:
        """Apply the pending step, if it is valid."""
        self._state.evaluate()
        if self._state.pending_step is not None:
            self.apply(self._state.pending_step)

    def apply(self, step: PendingStep) -> None:
        """Apply an evaluated step; one that is trained is trained first, one that looks at the model looks."""
        if step.preview is None:
            return
        if looks(step):
            self._evaluation.apply(step)
            return
        if not isinstance(step.preview.step.operation, LearningStep):
            self._state.apply_step(step)
            self._layout.reload()
            return
        reason = needs_idle_worker(self._state)
        if reason is None:
            self._state.discard()
            self._training.train_step(step.preview.step)
        else:
            self._state.set_notice(reason, "warning")
            self._layout.refresh_bars()
