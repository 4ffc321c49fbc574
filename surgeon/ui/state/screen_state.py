"""What the main screen shows, as plain data: the layer listing, the pending step, the scores, the message."""

from __future__ import annotations

from dataclasses import replace

from surgeon.core.checkpoint.fit import kept_fit
from surgeon.errors import SurgeonError, UsageError
from surgeon.session import Session
from surgeon.ui.state.formatting import bytes_change, count_change
from surgeon.ui.state.layer_listing import LayerListing, Severity
from surgeon.ui.state.pending_step import PendingStep, evaluate_operation, selection_fields
from surgeon.ui.state.score_columns import ScoreColumn
from surgeon.ui.state.step_text import step_title

_MANY_TENSORS = 5000
"""From here on compiling a plan takes noticeable time, so it waits for a pause in the key presses."""


class ScreenState(LayerListing):
    """The state of the main screen. Every method leaves it consistent with the session.

    job_title: the job on the worker, if any.   keep_journal: whether the next session recovers unsaved steps.
    base_fault: why the base cannot be measured or trained, as far as that was judged; empty if nothing is known.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.pending_step: PendingStep | None = None
        self.job_title: str | None = None
        self.keep_journal = True
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
        self.set_notice(f"marked {len(keys)} layers")

    def _set_marks(self, keys: frozenset[str]) -> None:
        self.marks = keys
        if self.pending_step is not None:
            self._select(self._positions(keys))

    # ── steps ──

    @property
    def step_titles(self) -> list[str]:
        """The title of every step."""
        return [step_title(step) for step in self.session.steps]

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
        keys = self.target_keys
        if not keys:
            self.set_notice("no layer is chosen: this row has been pruned", "warning")
            return
        before = self.pending_step.marks_before if self.pending_step else self.marks
        fields = {} if self.stack_name == self.session.structure.default_stack else {"stack": self.stack_name}
        self.pending_step = PendingStep(operation, fields, marks_before=before)
        self.anchor, self.notice = None, None
        self.marks = keys
        if self.pending_step.takes_layers:
            self._select(self._positions(keys))
        else:
            self.pending_step = evaluate_operation(self.session, operation, fields, before)

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
        if self.pending_step.preview is not None and set(selection_fields(operation)) & fields.keys():
            layers = self.session.draft.layers(self.stack_name)
            self.marks = frozenset(layers[position].key for position in self.pending_step.positions)

    def extend(self, change: int) -> None:
        """Add one layer to the pending step or remove one; a step that reorders moves its layers instead."""
        step = self.pending_step
        if step is None or not step.positions:
            return
        layers = self.session.draft.layers(self.stack_name)
        if step.reorders:
            first, last_start = min(step.positions), len(layers) - len(step.positions)
            shift = min(max(step.shift + change, -first), last_start - first)
            self._select(step.positions, shift)
            return
        positions = set(step.positions)
        last = max(positions)
        if change > 0 and last + 1 < len(layers):
            positions.add(last + 1)
        elif change < 0 and len(positions) > 1:
            positions.remove(last)
        self._set_marks(frozenset(layers[position].key for position in positions))

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
        if self.session.undo():
            self._after_move("undone", self.session.position)

    def redo(self) -> None:
        """Redo the next undone step."""
        if self.session.redo():
            self._after_move("redone", self.session.position - 1)

    def go_to(self, position: int) -> None:
        """Undo or redo until this many steps are applied."""
        while self.session.position > position:
            self.undo()
        while self.session.position < min(position, len(self.session.steps)):
            self.redo()

    def _after_move(self, what: str, number: int) -> None:
        self.pending_step, self.anchor = None, None
        self.reload()
        self.marks &= frozenset(row.key for row in self.rows if row.position is not None)
        inverse = "ctrl+r redoes" if what == "undone" else "u undoes"
        self._set_done(f"{what}: {step_title(self.session.steps[number])} · {inverse}", "info")

    # ── scores ──

    def open_score_columns(self, names: tuple[str, ...], data: str) -> None:
        """Open the columns of scores that are about to be measured.

        Raises:
            UsageError: no score is named.
        """
        if not names:
            raise UsageError("no score is chosen", hint="space chooses one")
        keys = [layer.key for layer in self.session.draft.layers()]
        self.score_columns.open(names, keys, self.session.draft.digest, data)
        self.active_column = min(self.active_column, len(self.visible_columns) - 1)

    def is_stale(self, column: ScoreColumn) -> bool:
        """Whether a column was measured on other weights than the current ones."""
        return not self.session.draft.is_what(column.digest)
