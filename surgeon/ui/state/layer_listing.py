"""The rows as they are listed: order, filter, cursor, marks and ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from surgeon.core.selection.selection import parse_selection
from surgeon.core.structure.structure import Stack
from surgeon.errors import SurgeonError, UsageError
from surgeon.session import Session
from surgeon.ui.state.layer_rows import LayerRow, build_rows
from surgeon.ui.state.score_columns import ScoreColumn, ScoreColumns

_STEP_PATH = re.compile(r"steps\[(\d+)\](\.?)")
Severity = Literal["info", "success", "warning", "error"]


@dataclass(frozen=True)
class Notice:
    """One message to the user, shown until the next one."""

    text: str
    severity: Severity = "info"


def step_numbers_text(text: str) -> str:
    """Return a message with steps counted from 1, as the recipe pane does; in a recipe's YAML they count from 0."""
    return _STEP_PATH.sub(lambda found: f"step {int(found[1]) + 1}{', ' if found[2] else ''}", text)


class LayerListing:
    """Which rows are listed, which one the cursor is on, and which are marked.

    order: indices into `rows`, one for each listed line.   cursor, anchor: lines, that is indices into `order`.
    sort: a score, and whether the highest values come first.   filter_text: the condition of the listed rows.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stack_name = session.structure.default_stack
        self.score_columns = ScoreColumns()
        self.marks: frozenset[str] = frozenset()
        self.anchor: int | None = None
        self.anchor_is_sticky = False
        self.cursor = 0
        self.active_column = 0
        self.sort: tuple[str, bool] | None = None
        self.filter_text = ""
        self.notice: Notice | None = None
        self.rows: tuple[LayerRow, ...] = ()
        self.order: list[int] = []
        self.reload()

    def reload(self) -> None:
        """Read the rows from the session again; the cursor stays on its layer."""
        key = self.current_row.key if self.rows else None
        self.rows = build_rows(self.session, self.stack_name)
        self.reorder(key)

    def reorder(self, key: str | None = None) -> None:
        """Filter and sort the rows again; the cursor stays on its layer."""
        key = key if key is not None or not self.order else self.current_row.key
        listed = self._filtered_keys()
        self.order = [index for index in self._sorted_indices() if self.rows[index].key in listed]
        lines = {self.rows[index].key: line for line, index in enumerate(self.order)}
        self.cursor = min(lines.get(key or "", self.cursor), len(self.order) - 1)

    def filter(self, text: str) -> None:
        """List only the rows that match: a state such as frozen or lora, marked, or a selection; all if empty.

        Raises:
            UsageError: no row matches. SelectionError: the text is no selection.
        """
        if text and not self.matching_keys(text):
            raise UsageError(f"no layer is {text}", where="filter")
        self.filter_text, self.anchor = text, None
        self.reorder()
        if text:
            self.set_notice(f"only {text}: {len(self.order)} of {len(self.rows)} rows · esc lists all")

    def matching_keys(self, text: str) -> frozenset[str]:
        """Return the layers that a filter or a selection matches.

        Raises:
            SelectionError: the text is neither a state nor a selection that can be resolved.
        """
        word = text.lower()
        if word == "marked":
            return self.marks
        states = frozenset(row.key for row in self.rows if any(word in state.lower() for state in row.states))
        return states or self.selected_keys(text)

    def selected_keys(self, text: str) -> frozenset[str]:
        """Return the layers of a selection such as `lowest 4 by block_influence`.

        Raises:
            SelectionError: it cannot be resolved.
        """
        selection = parse_selection(text)
        measured = {ranked: self.session.score_for(ranked) for ranked in selection.ranked()}
        layers = self.session.draft.layers(self.stack_name)
        return frozenset(layers[position].key for position in selection.positions(layers, measured))

    def _filtered_keys(self) -> frozenset[str]:
        all_keys = frozenset(row.key for row in self.rows)
        if not self.filter_text:
            return all_keys
        try:
            matching = self.matching_keys(self.filter_text) & all_keys
        except SurgeonError:  # it was valid for the draft before this one
            matching = frozenset()
        if not matching:
            self.set_notice(f"no layer is {self.filter_text} any more: all are listed again", "warning")
            self.filter_text = ""
        return matching or all_keys

    def _sorted_indices(self) -> list[int]:
        indices = list(range(len(self.rows)))
        column = self.score_columns.by_name.get(self.sort[0]) if self.sort else None
        if column is None or self.sort is None:
            return indices
        descending = self.sort[1]

        def sort_key(index: int) -> tuple[bool, bool, float]:
            row = self.rows[index]
            value = column.values.get(row.key)
            return row.position is None, value is None, 0.0 if value is None else -value if descending else value

        return sorted(indices, key=sort_key)

    @property
    def current_row(self) -> LayerRow:
        """The row under the cursor."""
        return self.rows[self.order[self.cursor]]

    @property
    def visible_columns(self) -> list[ScoreColumn]:
        """The score columns of the current stack."""
        return list(self.score_columns) if self.stack_name == self.session.structure.default_stack else []

    @property
    def current_stack(self) -> Stack:
        """The stack whose layers are listed."""
        return self.session.draft.structure.stack(self.stack_name)

    def cycle_sort(self) -> None:
        """Sort by the active column: highest first, lowest first, not at all."""
        if not self.visible_columns:
            return
        name = self.visible_columns[min(self.active_column, len(self.visible_columns) - 1)].name
        following: dict[object, tuple[str, bool] | None] = {(name, True): (name, False), (name, False): None}
        self.sort = following.get(self.sort, (name, True))
        self.reorder()

    # ── cursor, marks, ranges ──

    def move_to(self, line: int, *, extend: bool = False) -> None:
        """Move the cursor; `extend` draws a range that the next plain move ends."""
        if extend and self.anchor is None:
            self.anchor, self.anchor_is_sticky = self.cursor, False
        elif not extend and not self.anchor_is_sticky:
            self.anchor = None
        self.cursor = min(max(line, 0), len(self.order) - 1)

    def toggle_range(self) -> None:
        """Start a range that follows the cursor, or end it and mark its layers."""
        if self.anchor is None:
            self.anchor, self.anchor_is_sticky = self.cursor, True
        else:
            self._set_marks(self.marks | self.range_keys)
            self.anchor = None

    @property
    def range_keys(self) -> frozenset[str]:
        """The layers inside the current range."""
        if self.anchor is None:
            return frozenset()
        first, last = sorted((min(self.anchor, len(self.order) - 1), self.cursor))
        rows = (self.rows[index] for index in self.order[first : last + 1])
        return frozenset(row.key for row in rows if row.position is not None)

    def toggle_mark(self) -> None:
        """Mark or unmark the row under the cursor, or the whole range."""
        row = self.current_row
        keys = self.range_keys or frozenset([row.key] if row.position is not None else [])
        if not keys:
            self.set_notice("a pruned layer cannot be marked; u brings it back", "warning")
            return
        self._set_marks(self.marks - keys if keys <= self.marks else self.marks | keys)
        self.anchor = None

    def _set_marks(self, keys: frozenset[str]) -> None:
        self.marks = keys

    def _positions(self, keys: Iterable[str]) -> tuple[int, ...]:
        keys = set(keys)
        return tuple(row.position for row in self.rows if row.position is not None and row.key in keys)

    @property
    def target_keys(self) -> frozenset[str]:
        """The layers an operation would apply to: the marks and the range, or else the row under the cursor."""
        keys = self.marks | self.range_keys
        present = {row.key for row in self.rows if row.position is not None}
        row = self.current_row
        return (keys & present) or frozenset([row.key] if row.position is not None else [])

    def set_notice(self, text: str, severity: Severity = "info") -> None:
        """Replace the message."""
        self.notice = Notice(step_numbers_text(text), severity)
