"""The rows as they are listed: order, cursor, marks and ranges. Plain data, no widgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from surgeon.core.selection.selection import parse_selection
from surgeon.core.structure.structure import Stack
from surgeon.errors import SurgeonError, UsageError
from surgeon.session import Session
from surgeon.ui.state.layer_rows import Row, rows_of
from surgeon.ui.state.score_columns import Board, Column

Tone = Literal["info", "good", "warning", "bad"]


@dataclass(frozen=True)
class Notice:
    """One message to the person, until the next one."""

    text: str
    tone: Tone = "info"


class Listing:
    """Which rows there are, which one the cursor is on, and which are marked.

    cursor, anchor: places in `order`, which holds indexes into `rows`.
    sort: a score and whether the highest come first.   wanted: what the listed rows have to fit, in words.
    """

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
        self.wanted = ""
        self.notice: Notice | None = None
        self.rows: tuple[Row, ...] = ()
        self.order: list[int] = []
        self.renew()

    def renew(self) -> None:
        """Read the rows from the session again; the cursor stays on its layer."""
        key = self.row.key if self.rows else None
        self.rows = rows_of(self.session, self.stack)
        self.reorder(key)

    def reorder(self, key: str | None = None) -> None:
        """Sort the rows again; the cursor stays on its layer."""
        key = key if key is not None or not self.order else self.row.key
        fitting = self._fitting()
        self.order = [at for at in self._sorted() if self.rows[at].key in fitting]
        places = {self.rows[at].key: place for place, at in enumerate(self.order)}
        self.cursor = min(places.get(key or "", self.cursor), len(self.order) - 1)

    def filter(self, text: str) -> None:
        """List only the rows that fit: a state such as frozen or lora, marked, or a selection; all if empty.

        Raises:
            UsageError: none fits. SelectionError: it is no selection.
        """
        if text and not self.keys_of(text):
            raise UsageError(f"no layer is {text}", where="filter")
        self.wanted, self.anchor = text, None
        self.reorder()
        if text:
            self.say(f"only {text}: {len(self.order)} of {len(self.rows)} rows · esc lists all")

    def keys_of(self, text: str) -> frozenset[str]:
        """Return the layers that a filter or a selection means.

        Raises:
            SelectionError: it is neither a state nor a selection that fits.
        """
        word = text.lower()
        if word == "marked":
            return self.marks
        states = frozenset(row.key for row in self.rows if any(word in state.lower() for state in row.states))
        return states or self.selected(text)

    def selected(self, text: str) -> frozenset[str]:
        """Return the layers of a selection such as `lowest 4 by block_influence`.

        Raises:
            SelectionError: it does not fit.
        """
        selection = parse_selection(text)
        measured = {ranked: self.session.score_for(ranked) for ranked in selection.ranked()}
        layers = self.session.draft.layers(self.stack)
        return frozenset(layers[at].key for at in selection.positions(layers, measured))

    def _fitting(self) -> frozenset[str]:
        every = frozenset(row.key for row in self.rows)
        if not self.wanted:
            return every
        try:
            found = self.keys_of(self.wanted) & every
        except SurgeonError:  # it fitted the model of before
            found = frozenset()
        if not found:
            self.say(f"no layer is {self.wanted} any more: all are listed again", "warning")
            self.wanted = ""
        return found or every

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

    def _mark(self, keys: frozenset[str]) -> None:
        self.marks = keys

    def _positions(self, keys: Iterable[str]) -> tuple[int, ...]:
        wanted = set(keys)
        return tuple(row.position for row in self.rows if row.position is not None and row.key in wanted)

    @property
    def chosen(self) -> frozenset[str]:
        """What an operation would be about: the marks and the range, or else the row under the cursor."""
        keys = self.marks | self.range_keys
        living = {row.key for row in self.rows if row.position is not None}
        return (keys & living) or frozenset([self.row.key] if self.row.position is not None else [])

    def say(self, text: str, tone: Tone = "info") -> None:
        """Leave a message."""
        self.notice = Notice(text, tone)
