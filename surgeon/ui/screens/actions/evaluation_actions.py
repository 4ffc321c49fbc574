"""Steps that look at the model: carried out when they are asked for, with their figures beside them."""

from __future__ import annotations

from surgeon.core.jobs import AnyResult, EvaluateResult
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.ui.screens.actions.job_actions import JobActions
from surgeon.ui.screens.actions.training_actions import TrainingActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.availability import needs_idle_worker
from surgeon.ui.state.job_runner import JobDefaults
from surgeon.ui.state.pending_step import PendingStep
from surgeon.ui.state.step_results import result_text, results_of


class EvaluationActions:
    """Evaluates the applied steps that have no figures yet."""

    def __init__(self, layout: MainLayout, jobs: JobActions, training: TrainingActions, defaults: JobDefaults) -> None:
        self._layout, self._state, self._jobs = layout, layout.state, jobs
        self._training, self._defaults = training, defaults

    def apply(self, step: PendingStep) -> None:
        """Apply a step that looks at the model, and carry it out; later, where the worker is busy."""
        if self._state.apply_step(step):
            if needs_idle_worker(self._state) is None:
                self.measure()
            else:
                self._state.set_notice("applied, not measured yet: y measures it when the worker is free", "warning")
        self._layout.reload()

    def measure(self) -> None:
        """Carry out the evaluations and gates of the applied steps that have no figures."""
        state, session = self._state, self._state.session
        first = next(iter(state.unmeasured_steps), None)
        if first is None:
            return
        settings = {"device": self._defaults.device, "dtype": self._defaults.dtype}
        job = session.evaluate_job(first, None, **{name: value for name, value in settings.items() if value})
        state.notice = None
        self._jobs.start(job, "evaluate", self._measured, kept="y measures it again")
        self._layout.reload()

    def _measured(self, result: AnyResult) -> None:
        assert isinstance(result, EvaluateResult)
        if not self._training.take_results(result):
            return
        state, found = self._state, results_of(result.evaluations)
        state.results.take(state.session.steps, found)
        unmet = any(one.unmet for one in found)
        state.set_notice("\n".join(map(result_text, found[-4:])), "warning" if unmet else "success")


def looks(step: PendingStep) -> bool:
    """Whether a step only looks at the model."""
    return step.preview is not None and isinstance(step.preview.step.operation, ReadOnlyStep)
