"""The state of the operating room: session, rows, cursor, marks, proposal, scores. No widgets, so it tests without any."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from surgeon.core.selection import parse_selection
from surgeon.core.structure import Stack
from surgeon.errors import SurgeonError, UsageError
from surgeon.session import Session
from surgeon.ui.board import Board, Column
from surgeon.ui.figures import bytes_change, count_change
from surgeon.ui.proposal import Proposal, propose, selection_fields, step_text
from surgeon.ui.rows import Row, rows_of

Tone = Literal["info", "good", "warning", "bad"]


@dataclass(frozen=True)
class Notice:
    """One message to the person, until the next one."""

    text: str
    tone: Tone = "info"


class Room:
    """What is on screen, as plain data. Every method leaves it consistent with the session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stack = session.structure.default_stack
        self.board = Board()
        self.marks: frozenset[str] = frozenset()
        self.anchor: int | None = None
        self.sticky = False
        self.cursor = 0
        self.active = 0
        self.sort: tuple[str, bool] | None = None
        self.proposal: Proposal | None = None
        self.notice: Notice | None = None
        self.job_title: str | None = None
        self.rows: tuple[Row, ...] = ()
        self.order: list[int] = []
        for score in session.scores.values():
            self.board.take(score)
        self.renew()

    # ── rows and order ──

    def renew(self) -> None:
        """Read the rows from the session again; the cursor stays on its layer."""
        key = self.row.key if self.rows else None
        self.rows = rows_of(self.session, self.stack)
        self.reorder(key)

    def reorder(self, key: str | None = None) -> None:
        """Sort the rows again; the cursor stays on its layer."""
        key = key if key is not None or not self.order else self.row.key
        self.order = self._sorted()
        places = {self.rows[at].key: place for place, at in enumerate(self.order)}
        self.cursor = min(places.get(key or "", self.cursor), len(self.order) - 1)

    def _sorted(self) -> list[int]:
        places = list(range(len(self.rows)))
        column = self.board.columns.get(self.sort[0]) if self.sort else None
        if column is None or self.sort is None:
            return places
        descending = self.sort[1]

        def rank(at: int) -> tuple[bool, bool, float]:
            row = self.rows[at]
            value = column.values.get(row.key)
            return row.position is None, value is None, 0.0 if value is None else -value if descending else value

        return sorted(places, key=rank)

    @property
    def row(self) -> Row:
        """The row under the cursor."""
        return self.rows[self.order[self.cursor]]

    @property
    def columns(self) -> list[Column]:
        """The score columns of the stack on screen."""
        return list(self.board) if self.stack == self.session.structure.default_stack else []

    @property
    def step_titles(self) -> list[str]:
        """What every step does, in a few words."""
        return [step_text(step) for step in self.session.steps]

    @property
    def stack_here(self) -> Stack:
        """The stack on screen."""
        return self.session.structure.stack(self.stack)

    def cycle_sort(self) -> None:
        """Sort by the active column: highest first, lowest first, not at all."""
        if not self.columns:
            return
        name = self.columns[min(self.active, len(self.columns) - 1)].name
        steps: dict[object, tuple[str, bool] | None] = {(name, True): (name, False), (name, False): None}
        self.sort = steps.get(self.sort, (name, True))
        self.reorder()

    def next_stack(self) -> None:
        """Show the next stack of a model that has several."""
        names = list(self.session.structure.stacks)
        self.leave()
        self.stack = names[(names.index(self.stack) + 1) % len(names)]
        self.marks, self.anchor, self.cursor, self.order, self.rows = frozenset(), None, 0, [], ()
        self.renew()

    # ── cursor, marks, ranges ──

    def move_to(self, place: int, *, extend: bool = False) -> None:
        """Move the cursor; `extend` draws a range that the next plain move ends."""
        if extend and self.anchor is None:
            self.anchor, self.sticky = self.cursor, False
        elif not extend and not self.sticky:
            self.anchor = None
        self.cursor = min(max(place, 0), len(self.order) - 1)

    def toggle_range(self) -> None:
        """Start a range that follows the cursor, or end it and keep its layers marked."""
        if self.anchor is None:
            self.anchor, self.sticky = self.cursor, True
        else:
            self._mark(self.marks | self.range_keys)
            self.anchor = None

    @property
    def range_keys(self) -> frozenset[str]:
        """The layers inside the range that is being drawn."""
        if self.anchor is None:
            return frozenset()
        first, last = sorted((min(self.anchor, len(self.order) - 1), self.cursor))
        rows = (self.rows[at] for at in self.order[first : last + 1])
        return frozenset(row.key for row in rows if row.position is not None)

    def toggle_mark(self) -> None:
        """Mark or unmark the row under the cursor, or the whole range."""
        keys = self.range_keys or frozenset([self.row.key] if self.row.position is not None else [])
        if not keys:
            self.say("a pruned layer cannot be marked; u brings it back", "warning")
            return
        self._mark(self.marks - keys if keys <= self.marks else self.marks | keys)
        self.anchor = None

    def mark_selection(self, text: str) -> None:
        """Mark what a selection chooses, such as `lowest 4 by block_influence`.

        Raises:
            SelectionError: it does not fit.
        """
        selection = parse_selection(text)
        measured = {ranked: self.session.score_for(ranked) for ranked in selection.ranked()}
        layers = self.session.draft.layers(self.stack)
        positions = selection.positions(layers, measured)
        self._mark(frozenset(layers[at].key for at in positions))
        self.say(f"marked {len(positions)} layers")

    def _mark(self, keys: frozenset[str]) -> None:
        self.marks = keys
        if self.proposal is not None:
            self._repropose(self._positions(keys))

    def _positions(self, keys: Iterable[str]) -> tuple[int, ...]:
        wanted = set(keys)
        return tuple(row.position for row in self.rows if row.position is not None and row.key in wanted)

    @property
    def chosen(self) -> frozenset[str]:
        """What an operation would be about: the marks and the range, or else the row under the cursor."""
        keys = self.marks | self.range_keys
        living = {row.key for row in self.rows if row.position is not None}
        return (keys & living) or frozenset([self.row.key] if self.row.position is not None else [])

    # ── operating ──

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
        self._repropose(self._positions(chosen))

    def _repropose(self, positions: tuple[int, ...]) -> None:
        assert self.proposal is not None
        self.proposal = self.proposal.with_positions(self.session, positions)

    def set_fields(self, fields: dict[str, object]) -> None:
        """Change the options of the proposal; its layers may be a selection such as `lowest 4 by SCORE`."""
        assert self.proposal is not None
        self.proposal = propose(self.session, self.proposal.operation, fields, self.proposal.marks_before)
        if self.proposal.preview is not None and set(selection_fields(self.proposal.operation)) & fields.keys():
            layers = self.session.draft.layers(self.stack)
            self.marks = frozenset(layers[at].key for at in self.proposal.positions)

    def widen(self, change: int) -> None:
        """Let the proposal reach one layer further up, or one less."""
        if self.proposal is None or not self.proposal.positions:
            return
        layers = self.session.draft.layers(self.stack)
        positions = set(self.proposal.positions)
        last = max(positions)
        if change > 0 and last + 1 < len(layers):
            positions.add(last + 1)
        elif change < 0 and len(positions) > 1:
            positions.remove(last)
        self._mark(frozenset(layers[at].key for at in positions))

    def apply(self) -> bool:
        """Do what is proposed; False where it cannot be done."""
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
        change = f" · {count_change(done.parameters_change)} params, {bytes_change(done.bytes_change)}" if done.parameters_change else ""
        self.say(f"applied: {step_text(done.step)}{change} · u undoes", "good")
        return True

    def leave(self) -> None:
        """Leave the proposal, else the range, else the marks, else the message."""
        if self.proposal is not None:
            self.marks, self.proposal = self.proposal.marks_before, None
        elif self.anchor is not None:
            self.anchor = None
        elif self.marks:
            self.marks = frozenset()
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
        return column.digest != self.session.draft.digest

    def say(self, text: str, tone: Tone = "info") -> None:
        """Leave a message."""
        self.notice = Notice(text, tone)
