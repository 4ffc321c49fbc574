"""Which columns the layer table has at a width, and how wide each is."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.ui.state.screen_state import ScreenState

VALUE_CELLS = 6
SCORE_CELLS = VALUE_CELLS + 8
ERROR_CELLS = 6
_BAR_CELLS = 16
_MODULES_CELLS = 14


@dataclass(frozen=True, slots=True)
class TableLayout:
    """The width of each column in cells; zero means that it is not shown.

    modules: the bar of a layer's parameters by module.   score: each score column.
    first_score, score_count: which score columns are shown.   largest_layer: the parameters of a full module bar.
    """

    position: int
    key: int
    state: int
    modules: int
    score: int
    first_score: int
    score_count: int
    largest_layer: int

    @property
    def shown_scores(self) -> range:
        """The indices of the score columns that are shown."""
        return range(self.first_score, self.first_score + self.score_count)


def wanted_width(screen: ScreenState) -> int:
    """Return how many cells the table can use well: all of its scores with their errors and bars."""
    layout = fit_columns(screen, 10_000)
    fixed = 3 + layout.position + layout.key + 7 + layout.state
    return fixed + _MODULES_CELLS + len(screen.visible_columns) * (SCORE_CELLS + ERROR_CELLS)


def fit_columns(screen: ScreenState, width: int) -> TableLayout:
    """Return the columns that fit. The active score is among them."""
    rows, columns = screen.rows, screen.visible_columns
    reordered = any(row.key != str(row.position) for row in rows)
    position = max(3, len(str(len(rows))) + 1)
    key = max(6, *(len(row.key) + 1 for row in rows)) if reordered else 0
    state = min(14, max(6, *(len(" ".join(row.states)) for row in rows)) + 1)
    largest = max(1, *(row.parameters for row in rows))
    left = width - 3 - position - key - 7 - state
    count = max(0, min(len(columns), left // SCORE_CELLS))
    first = min(max(0, screen.active_column - count + 1), max(0, len(columns) - count))
    if not count:
        return TableLayout(position, key, state, max(0, left), 0, 0, 0, largest)
    spare = left - count * SCORE_CELLS
    modules = _MODULES_CELLS if spare >= _MODULES_CELLS + 2 * count else 0
    score = min((left - modules) // count, SCORE_CELLS + _BAR_CELLS)
    rest = left - score * count
    modules = rest if modules or rest > _MODULES_CELLS else 0
    return TableLayout(position, key, state, modules, score, first, count, largest)
