"""Which columns the table has at a width, and how wide each is."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.ui.state.screen_state import Room

VALUE_CELLS = 6
SCORE_CELLS = VALUE_CELLS + 8
_BAR_CELLS = 16
_BUILD_CELLS = 14


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns there are at this width, and how wide each is. Zero means that it is not shown."""

    position: int
    key: int
    state: int
    build: int
    score: int
    first: int
    scores: int
    largest: int


def shape_at(room: Room, width: int) -> Shape:
    """Return which columns fit, and how wide each is. The active score is among them."""
    rows, columns = room.rows, room.columns
    moved = any(row.key != str(row.position) for row in rows)
    position = max(3, len(str(len(rows))) + 1)
    key = max(6, *(len(row.key) + 1 for row in rows)) if moved else 0
    state = min(14, max(6, *(len(" ".join(row.states)) for row in rows)) + 1)
    largest = max(1, *(row.parameters for row in rows))
    left = width - 3 - position - key - 7 - state
    fit = max(0, min(len(columns), left // SCORE_CELLS))
    first = min(max(0, room.active - fit + 1), max(0, len(columns) - fit))
    if not fit:
        return Shape(position, key, state, max(0, left), 0, 0, 0, largest)
    spare = left - fit * SCORE_CELLS
    build = _BUILD_CELLS if spare >= _BUILD_CELLS + 2 * fit else 0
    score = min((left - build) // fit, SCORE_CELLS + _BAR_CELLS)
    rest = left - score * fit
    return Shape(position, key, state, rest if build or rest > _BUILD_CELLS else 0, score, first, fit, largest)
