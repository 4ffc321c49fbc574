"""The lines of the layer table as segments: its header and one line per layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style

from surgeon.ui.state.formatting import bar_text, count_text, value_text
from surgeon.ui.state.layer_rows import LayerRow
from surgeon.ui.state.score_columns import ScoreColumn
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.theme import ThemeStyles
from surgeon.ui.widgets.parameter_breakdown import ModuleBar
from surgeon.ui.widgets.table_layout import ERROR_CELLS, SCORE_CELLS, VALUE_CELLS, TableLayout


@dataclass(frozen=True, slots=True)
class LayerLines:
    """Renders the lines for one layout and one theme."""

    state: ScreenState
    layout: TableLayout
    styles: ThemeStyles
    module_bar: ModuleBar

    def header(self) -> Iterator[Segment]:
        """Render the column titles."""
        styles, layout = self.styles, self.layout
        yield Segment("   ")
        yield Segment("#".rjust(layout.position - 1) + " ", styles.dim)
        if layout.key:
            yield Segment("layer".ljust(layout.key), styles.dim)
        yield Segment("params ", styles.dim)
        yield Segment("state".ljust(layout.state), styles.dim)
        if layout.modules and layout.score:
            yield Segment(" ")
            yield Segment("build".ljust(layout.modules - 1), styles.dim)
        elif layout.modules:
            yield from self.module_bar.legend(layout.modules, styles)
        for index in layout.shown_scores:
            yield from self._score_header(index)

    def _score_header(self, index: int) -> Iterator[Segment]:
        styles, sort, columns = self.styles, self.state.sort, self.state.visible_columns
        column = columns[index]
        is_sorted = sort is not None and sort[0] == column.name
        arrow = (" ▾" if sort and sort[1] else " ▴") if is_sorted else ""
        more = "  +" if index == self.layout.shown_scores[-1] < len(columns) - 1 else ""
        active = index == self.state.active_column and len(columns) > 1
        style = styles.key + Style(underline=active) if active or is_sorted else styles.title
        indent = max(1, VALUE_CELLS + 1 - len(column.title))
        rest = f"{arrow}{'  cut ▸' if column.scale.cut else ''}{more}"
        width = max(0, self.layout.score - indent - len(column.title))
        yield Segment(" " * indent)
        yield Segment(column.title, style)
        yield Segment(rest[:width].ljust(width), styles.dim)

    def row(self, row: LayerRow, line: int) -> Iterator[Segment]:
        """Render a layer."""
        styles, layout, state = self.styles, self.layout, self.state
        removed, at_cursor = row.position is None, line == state.cursor
        yield Segment("●" if row.key in state.marks else " ", styles.mark)
        yield Segment(
            "▶" if at_cursor else "│" if row.key in state.range_keys else " ",
            styles.accent if at_cursor else styles.mark,
        )
        yield Segment(" ")
        position = "┄" if row.position is None else str(row.position)
        style = styles.faint if removed else styles.title if at_cursor else styles.foreground
        yield Segment(position.rjust(layout.position - 1) + " ", style)
        if layout.key:
            style = styles.removed if removed else styles.violet if row.layer.inserted else styles.dim
            # The strike-through of a removed layer must not extend into the padding.
            yield Segment(row.key[: layout.key], style)
            yield Segment(" " * (layout.key - len(row.key)))
        text = count_text(row.parameters)
        yield Segment(" " * (6 - len(text)))
        yield Segment(text, styles.removed if removed else styles.dim)
        yield Segment(" ")
        yield from self._states(row)
        if layout.modules:
            yield from self.module_bar.render(row, layout.modules - 1, layout.largest_layer, styles)
        for index in layout.shown_scores:
            yield from self._score(row, state.visible_columns[index])

    def _states(self, row: LayerRow) -> Iterator[Segment]:
        left = self.layout.state
        for state in row.states:
            if left < len(state) + 1:
                break
            yield Segment(state, self.styles.layer_state(state))
            yield Segment(" ")
            left -= len(state) + 1
        yield Segment(" " * left)

    def _score(self, row: LayerRow, column: ScoreColumn) -> Iterator[Segment]:
        styles, width = self.styles, self.layout.score
        bar_width = width - VALUE_CELLS - 3
        error_width = ERROR_CELLS if column.errors and width >= SCORE_CELLS + ERROR_CELLS else 0
        key = row.key
        if key in column.pending:
            yield Segment(f" {'···':>{VALUE_CELLS}}  {'···':<{bar_width}}"[:width], styles.faint)
        elif key in column.failed:
            yield Segment(f" {'!':>{VALUE_CELLS}}  ", styles.error)
            yield Segment("failed"[:bar_width].ljust(bar_width), styles.error)
        elif key not in column.values:
            yield Segment(f" {'—':>{VALUE_CELLS}}  {'':<{bar_width}}", styles.faint)
        else:
            value, stale = column.values[key], self.state.is_stale(column)
            step = styles.ramp_step(column.scale.rank(value))
            text = value_text(value, column.scale.decimals)
            faded = stale or row.position is None
            yield Segment(f" {text:>{VALUE_CELLS}}", styles.faint if faded else styles.ramp_text[step])
            unsure = key in column.uncertain
            yield Segment("~ " if stale else "≈ " if unsure else "  ", styles.warning if stale else styles.dim)
            if error_width:
                error = column.errors.get(key)
                text = "" if error is None else f"±{value_text(error, column.scale.decimals)}"
                yield Segment(f"{text[: error_width - 1]:<{error_width}}", styles.faint)
            bar_style = styles.faint_bar if faded else styles.ramp_bars[step]
            bar = bar_text(column.scale.length(value), bar_width - error_width)
            yield Segment(f"{bar[:-1]}▸" if column.scale.beyond(value) else bar, bar_style)
