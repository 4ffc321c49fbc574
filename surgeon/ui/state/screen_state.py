"""What the main screen shows, as plain data: the layer listing, the pending step, the scores, the message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from surgeon.core.checkpoint.fit import kept_fit
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.core.selection.selection import spans
from surgeon.errors import SurgeonError, UsageError
from surgeon.session import Session
from surgeon.ui.state.formatting import bytes_change, count_change
from surgeon.ui.state.layer_listing import LayerListing, Severity
from surgeon.ui.state.pending_step import PendingStep, evaluate_operation, layer_fields
from surgeon.ui.state.score_columns import ScoreColumn
from surgeon.ui.state.step_results import StepResults
from surgeon.ui.state.step_text import step_title

_MANY_TENSORS = 5000
"""From here on compiling a plan takes noticeable time, so it waits for a pause in the key presses."""


class ScreenState(LayerListing):
    """The state of the main screen. Every method leaves it consistent with the session.

    marked_as: the selection that the marks were made by, where they are just that.
    job_title: the job on the worker, if any.   keep_journal: whether the next session recovers unsaved steps.
    base_fault: why the base cannot be measured or trained, as far as that was judged; empty if nothing is known.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.pending_step: PendingStep | None = None
        self.job_title: str | None = None
        self.keep_journal = True
        self.results = StepResults()
        self.marked_as = ""
        fit = kept_fit(session.checkpoint)
        self.base_fault = fit.text if fit is not None and not fit.whole else ""
        for score in session.scores.values():
            self.score_columns.set_score(score)

    @property
    def base_notes(self) -> tuple[str, ...]:
        """What there is to know of the base's files."""
        return (*self.session.checkpoint.notes, *self.session.structure.problems)

    def take_fault(self, fault: str) -> None:
        """Show what the worker found wrong with the base."""
        self.base_fault = fault
        self.set_notice(fault, "error")

    def mark_selection(self, text: str) -> None:
        """Mark the layers of a selection, such as `lowest 4 by block_influence`.

        Raises:
            SelectionError: it cannot be resolved.
        """
        keys = self.selected_keys(text)
        self._set_marks(keys)
        self.marked_as = text
        self.set_notice(f"marked {len(keys)} layers")

    def _set_marks(self, keys: frozenset[str]) -> None:
        self.marks, self.marked_as = keys, ""
        if self.pending_step is not None:
            self._select(self._positions(keys))

    # ── steps ──

    @property
    def step_titles(self) -> list[str]:
        """The title of every step."""
        return [step_title(step) for step in self.session.steps]

    @property
    def unmeasured_steps(self) -> list[int]:
        """The applied steps that look at the model and have not been carried out on it, counted from 0."""
        steps = self.session.steps[: self.session.position]
        return [
            number for number, step in enumerate(steps)
            if isinstance(step.operation, ReadOnlyStep) and not self.results.of(steps, number)
        ]  # fmt: skip

    def next_stack(self) -> None:
        """List the next stack of a model that has several."""
        names = list(self.session.structure.stacks)
        self.discard()
        self.stack_name = names[(names.index(self.stack_name) + 1) % len(names)]
        self.marks, self.anchor, self.cursor, self.order, self.rows = frozenset(), None, 0, [], ()
        self.filter_text = ""
        self.reload()

    def start_step(self, operation: str) -> None:
        """Make an operation on the target layers the pending step; nothing is applied yet."""
        before = self.pending_step.marks_before if self.pending_step else self.marks
        fields = {} if self.stack_name == self.session.structure.default_stack else {"stack": self.stack_name}
        step = PendingStep(operation, fields, marks_before=before)
        keys = self.target_keys
        if step.takes_layers and not keys:
            self.set_notice("no layer is chosen: this row has been pruned", "warning")
            return
        marked_as = self.marked_as if self.marked_as and keys == self.marks else ""
        self.pending_step, self.anchor, self.notice = step, None, None
        if not step.takes_layers:
            self.pending_step = evaluate_operation(self.session, operation, fields, before)
            return
        self.marks = keys
        selectors = layer_fields(operation)
        if marked_as and selectors and not step.reorders:
            self.pending_step = evaluate_operation(self.session, operation, {**fields, selectors[0]: marked_as}, before)
        if self.pending_step.preview is None:
            self._select(self._positions(keys))

    def line_fields(self, operation: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the fields of a typed operation; one that lacks its layers is for those that are marked."""
        selectors, keys = layer_fields(operation), self.marks | self.range_keys
        if not selectors or not keys or fields.keys() & set(selectors):
            return fields
        if evaluate_operation(self.session, operation, fields).error is None:
            return fields
        return {**fields, selectors[0]: self.marked_as or spans(self._positions(keys))}

    def _select(self, positions: tuple[int, ...], shift: int = 0) -> None:
        """Give the pending step other layers."""
        assert self.pending_step is not None
        if self.defers_evaluation:
            self.pending_step = replace(self.pending_step, positions=positions, shift=shift, preview=None, error=None)
        else:
            self.pending_step = self.pending_step.with_positions(self.session, positions, shift)

    @property
    def defers_evaluation(self) -> bool:
        """Whether an evaluation takes so long that it waits for a pause in typing."""
        return len(self.session.checkpoint.tensors) > _MANY_TENSORS

    def evaluate(self) -> None:
        """Evaluate the pending step if that was deferred."""
        step = self.pending_step
        if step is not None and not step.evaluated:
            self.pending_step = step.with_positions(self.session, step.positions, step.shift)

    def set_fields(self, fields: dict[str, object]) -> None:
        """Change the options of the pending step; its layers may be a selection such as `lowest 4 by SCORE`."""
        assert self.pending_step is not None
        operation = self.pending_step.operation
        self.pending_step = evaluate_operation(self.session, operation, fields, self.pending_step.marks_before)
        if self.pending_step.preview is not None and set(layer_fields(operation)) & fields.keys():
            layers = self.session.draft.layers(self.stack_name)
            self.marks = frozenset(layers[position].key for position in self.pending_step.positions)

    def extend(self, change: int) -> None:
        """Add the layer listed next to the pending step or remove the last; a reorder moves its layers instead."""
        step = self.pending_step
        if step is None or not step.positions or not step.takes_layers:
            return
        layers = self.session.draft.layers(self.stack_name)
        if step.reorders:
            first, last_start = min(step.positions), len(layers) - len(step.positions)
            shift = min(max(step.shift + change, -first), last_start - first)
            self._select(step.positions, shift)
            return
        keys = frozenset(layers[position].key for position in step.positions)
        listed = [row.key for row in map(self.rows.__getitem__, self.order) if row.position is not None]
        last = max((line for line, key in enumerate(listed) if key in keys), default=-1)
        if change > 0 and last + 1 < len(listed):
            keys |= {listed[last + 1]}
        elif change < 0 and len(keys) > 1 and last >= 0:
            keys -= {listed[last]}
        self._set_marks(keys)

    def apply_pending_step(self) -> bool:
        """Apply the pending step; False where it is refused."""
        self.evaluate()
        return self.pending_step is not None and self.apply_step(self.pending_step)

    def apply_step(self, step: PendingStep) -> bool:
        """Apply an evaluated step and add it to the recipe; False where it is refused."""
        if step.preview is None:
            return False
        try:
            done = self.session.apply(step.preview.step)
        except (SurgeonError, OSError) as error:
            self.set_notice(str(error), "error")
            return False
        self.pending_step, self.marks, self.anchor = None, frozenset(), None
        self.reload()
        change = (
            f" · {count_change(done.parameters_change)} params, {bytes_change(done.bytes_change)}"
            if done.parameters_change
            else ""
        )
        self._set_done(f"applied: {step_title(done.step)}{change} · u undoes", "success")
        return True

    def _set_done(self, text: str, severity: Severity) -> None:
        """Say what was done, and that it is not safe from a crash where that was not said before."""
        fault = self.session.journal.fault
        if fault and fault not in self.session.notes:
            self.set_notice(f"{text}\n{fault}", "warning")
        else:
            self.set_notice(text, severity)

    def discard(self) -> None:
        """Discard the pending step, else the range, else the marks, else the filter; the message too."""
        if self.pending_step is not None:
            self.marks, self.pending_step = self.pending_step.marks_before, None
        elif self.anchor is not None:
            self.anchor = None
        elif self.marks:
            self.marks = frozenset()
        elif self.filter_text:
            self.filter("")
        self.notice = None

    def undo(self) -> None:
        """Undo the newest applied step."""
        before = self.session.position
        if self.session.undo():
            self._after_move("undone", self.session.position if self.session.position < before else -1)

    def redo(self) -> None:
        """Redo the next undone step."""
        before = self.session.position
        if self.session.redo():
            self._after_move("redone", before if self.session.position == before + 1 else -1)

    def go_to(self, position: int) -> None:
        """Undo or redo until this many steps are applied."""
        before = self.session.position
        self.session.go_to(position)
        now = self.session.position
        if now != before:
            self._after_move("undone" if now < before else "redone", now if now < before else now - 1)

    def edit_step(self, number: int, edit: str) -> None:
        """Go to a step, counted from 0, delete it, duplicate it, or move it up or down.

        Raises:
            SurgeonError: a step that follows does not fit any more; nothing is changed.
        """
        session, title = self.session, self.step_titles[number]
        if edit == "go_to":
            self.go_to(number + 1)
            return
        place = number + (1 if edit == "down" else -1)
        if edit in ("up", "down") and not 0 <= place < len(session.steps):
            raise UsageError(f"step {number + 1} cannot be moved {edit}")
        if edit == "delete":
            session.delete_step(number)
        elif edit == "duplicate":
            session.duplicate_step(number)
        else:
            session.move_step(number, place)
        self.pending_step, self.anchor, self.marks = None, None, frozenset()
        self.reload()
        done = {"delete": "deleted", "duplicate": "duplicated"}.get(edit, f"moved {edit}")
        self._set_done(f"{done}: {title} · u takes that back", "success")

    def _after_move(self, what: str, number: int) -> None:
        self.pending_step, self.anchor = None, None
        self.reload()
        self.marks &= frozenset(row.key for row in self.rows if row.position is not None)
        inverse = "ctrl+r redoes" if what == "undone" else "u undoes"
        moved = 0 <= number < len(self.session.steps)
        title = step_title(self.session.steps[number]) if moved else "the edit of an earlier step"
        self._set_done(f"{what}: {title} · {inverse}", "info")

    # ── scores ──

    def open_score_columns(self, names: tuple[str, ...], data: str) -> None:
        """Open the columns of scores that are about to be measured.

        Raises:
            UsageError: no score is named.
        """
        if not names:
            raise UsageError("no score is chosen", hint="space chooses one")
        keys = [layer.key for layer in self.session.draft.layers()]
        self.score_columns.open(names, keys, self.session.draft.measured_digest, data)
        self.active_column = min(self.active_column, len(self.visible_columns) - 1)

    def is_stale(self, column: ScoreColumn) -> bool:
        """Whether a column was measured on other weights than the current ones."""
        return not self.session.draft.is_what(column.digest, weights_only=column.weights_only)
