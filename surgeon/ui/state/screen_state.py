"""The state of the operating room: the listing, the proposal, the scores. No widgets, so it tests without any."""

from __future__ import annotations

from dataclasses import replace

from surgeon.errors import SurgeonError, UsageError
from surgeon.session import Session
from surgeon.ui.state.formatting import bytes_change, count_change
from surgeon.ui.state.layer_listing import Listing
from surgeon.ui.state.pending_step import Proposal, propose, selection_fields, step_text
from surgeon.ui.state.score_columns import Column

_MANY_TENSORS = 5000
"""From here on making a plan is felt at every key, so it is made when the keys rest."""


class Room(Listing):
    """What is on screen, as plain data. Every method leaves it consistent with the session."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.proposal: Proposal | None = None
        self.job_title: str | None = None
        for score in session.scores.values():
            self.board.take(score)

    def mark_selection(self, text: str) -> None:
        """Mark what a selection chooses, such as `lowest 4 by block_influence`.

        Raises:
            SelectionError: it does not fit.
        """
        keys = self.selected(text)
        self._mark(keys)
        self.say(f"marked {len(keys)} layers")

    def _mark(self, keys: frozenset[str]) -> None:
        self.marks = keys
        if self.proposal is not None:
            self._repropose(self._positions(keys))

    # ── operating ──

    @property
    def step_titles(self) -> list[str]:
        """What every step does, in a few words."""
        return [step_text(step) for step in self.session.steps]

    def next_stack(self) -> None:
        """Show the next stack of a model that has several."""
        names = list(self.session.structure.stacks)
        self.leave()
        self.stack = names[(names.index(self.stack) + 1) % len(names)]
        self.marks, self.anchor, self.cursor, self.order, self.rows = frozenset(), None, 0, [], ()
        self.wanted = ""
        self.renew()

    def open_proposal(self, operation: str) -> None:
        """Propose an operation on the chosen layers; nothing is done yet."""
        chosen = self.chosen
        if not chosen:
            self.say("no layer is chosen: this row has been pruned", "warning")
            return
        before = self.proposal.marks_before if self.proposal else self.marks
        fields = {} if self.stack == self.session.structure.default_stack else {"stack": self.stack}
        self.proposal = Proposal(operation, fields, marks_before=before)
        self.anchor, self.notice = None, None
        self.marks = chosen
        if self.proposal.chooses:
            self._repropose(self._positions(chosen))
        else:
            self.proposal = propose(self.session, operation, fields, before)

    def _repropose(self, positions: tuple[int, ...], shift: int = 0) -> None:
        assert self.proposal is not None
        if self.hesitates:
            self.proposal = replace(self.proposal, positions=positions, shift=shift, preview=None, error=None)
        else:
            self.proposal = self.proposal.with_positions(self.session, positions, shift)

    @property
    def hesitates(self) -> bool:
        """Whether judging takes long enough to wait for a pause in typing."""
        return len(self.session.checkpoint.tensors) > _MANY_TENSORS

    def judge(self) -> None:
        """Work out what the proposal would do, where that was put off."""
        if self.proposal is not None and not self.proposal.judged:
            self.proposal = self.proposal.with_positions(self.session, self.proposal.positions, self.proposal.shift)

    def set_fields(self, fields: dict[str, object]) -> None:
        """Change the options of the proposal; its layers may be a selection such as `lowest 4 by SCORE`."""
        assert self.proposal is not None
        self.proposal = propose(self.session, self.proposal.operation, fields, self.proposal.marks_before)
        if self.proposal.preview is not None and set(selection_fields(self.proposal.operation)) & fields.keys():
            layers = self.session.draft.layers(self.stack)
            self.marks = frozenset(layers[at].key for at in self.proposal.positions)

    def widen(self, change: int) -> None:
        """Let the proposal take in one layer more or less; one that moves layers moves them."""
        if self.proposal is None or not self.proposal.positions:
            return
        layers = self.session.draft.layers(self.stack)
        if self.proposal.moves:
            first, room = min(self.proposal.positions), len(layers) - len(self.proposal.positions)
            shift = min(max(self.proposal.shift + change, -first), room - first)
            self._repropose(self.proposal.positions, shift)
            return
        positions = set(self.proposal.positions)
        last = max(positions)
        if change > 0 and last + 1 < len(layers):
            positions.add(last + 1)
        elif change < 0 and len(positions) > 1:
            positions.remove(last)
        self._mark(frozenset(layers[at].key for at in positions))

    def apply(self) -> bool:
        """Do what is proposed; False where it cannot be done."""
        self.judge()
        if self.proposal is None or self.proposal.preview is None:
            return False
        return self.do(self.proposal)

    def do(self, proposal: Proposal) -> bool:
        """Apply a judged proposal as a step of the recipe; False where it cannot be done."""
        if proposal.preview is None:
            return False
        try:
            done = self.session.apply(proposal.preview.step)
        except (SurgeonError, OSError) as error:
            self.say(str(error), "bad")
            return False
        self.proposal, self.marks, self.anchor = None, frozenset(), None
        self.renew()
        change = (
            f" · {count_change(done.parameters_change)} params, {bytes_change(done.bytes_change)}"
            if done.parameters_change
            else ""
        )
        self.say(f"applied: {step_text(done.step)}{change} · u undoes", "good")
        return True

    def leave(self) -> None:
        """Leave the proposal, else the range, else the marks, else the filter, else the message."""
        if self.proposal is not None:
            self.marks, self.proposal = self.proposal.marks_before, None
        elif self.anchor is not None:
            self.anchor = None
        elif self.marks:
            self.marks = frozenset()
        elif self.wanted:
            self.filter("")
        self.notice = None

    def undo(self) -> None:
        """Take back the newest applied step."""
        if self.session.undo():
            self._stepped("undone", self.session.position)

    def redo(self) -> None:
        """Apply the next undone step again."""
        if self.session.redo():
            self._stepped("redone", self.session.position - 1)

    def go_to(self, position: int) -> None:
        """Undo or redo until this many steps are applied."""
        while self.session.position > position:
            self.undo()
        while self.session.position < min(position, len(self.session.steps)):
            self.redo()

    def _stepped(self, word: str, number: int) -> None:
        self.proposal, self.anchor = None, None
        self.renew()
        self.marks &= frozenset(row.key for row in self.rows if row.position is not None)
        other = "ctrl+r redoes" if word == "undone" else "u undoes"
        self.say(f"{word}: {step_text(self.session.steps[number])} · {other}")

    # ── scores ──

    def begin_scores(self, names: tuple[str, ...], data: str) -> None:
        """Open the columns of scores that are about to be measured.

        Raises:
            UsageError: no score is named.
        """
        if not names:
            raise UsageError("no score is chosen", hint="space chooses one")
        keys = [layer.key for layer in self.session.draft.layers()]
        self.board.begin(names, keys, self.session.draft.digest, data)
        self.active = min(self.active, len(self.columns) - 1)

    def is_stale(self, column: Column) -> bool:
        """Whether a column was measured on other weights than the current ones."""
        return not self.session.draft.is_what(column.digest)
