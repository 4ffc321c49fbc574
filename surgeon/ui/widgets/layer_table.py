"""The table of layers, painted line by line: a score that arrives repaints only the lines that changed."""

from __future__ import annotations

from collections.abc import Iterable

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.theme import theme_styles
from surgeon.ui.widgets.layer_table_rendering import LayerLines
from surgeon.ui.widgets.parameter_breakdown import ModuleBar
from surgeon.ui.widgets.table_layout import TableLayout, fit_columns


class LayerTable(ScrollView, can_focus=True, inherit_bindings=False):
    """A header and one line per layer. Changes nothing but its own scroll offset."""

    HELP = "The layers of the model, and the scores of each."

    class Clicked(Message):
        """A line was clicked, or the header of a score column."""

        def __init__(self, line: int | None, column: int | None) -> None:
            super().__init__()
            self.line, self.column = line, column

    def __init__(self, state: ScreenState) -> None:
        super().__init__(id="layers")
        self.state = state
        self._module_bar = ModuleBar(state)
        self._table_layout: TableLayout | None = None
        self._base_style = Style.null()

    # ── what changed ──

    def reload(self) -> None:
        """Fit the columns and repaint everything: rows or columns have changed."""
        self._table_layout = None
        state = self.state
        present = sum(row.position is not None for row in state.rows)
        several = len(state.session.structure.stacks) > 1
        self.border_title = f"{state.stack_name + ' · ' if several else ''}{present} layers"
        parts = [f"only {state.filter_text}"] if state.filter_text else []
        parts += [f"sorted by {state.sort[0]}"] if state.sort else []
        self.border_subtitle = " · ".join(parts)
        self.virtual_size = Size(0, len(state.order) + 1)
        self.keep_cursor_in_view()
        self.refresh()

    def repaint_layers(self, keys: set[str]) -> None:
        """Repaint the lines of these layers: their values have changed."""
        lines = {self.state.rows[index].key: line for line, index in enumerate(self.state.order)}
        self.repaint_lines({lines[key] for key in keys if key in lines})

    def repaint_lines(self, lines: set[int]) -> None:
        """Repaint these lines, where they are in view."""
        top, height, width = self.scroll_offset.y, self.size.height, self.size.width
        regions = [Region(0, line + 1 - top, width, 1) for line in lines if 0 < line + 1 - top < height]
        if regions:
            self.refresh(*regions)

    def keep_cursor_in_view(self) -> None:
        """Scroll as little as brings the cursor into view."""
        visible = max(1, self.size.height - 1)
        top, cursor = self.scroll_offset.y, self.state.cursor
        target = cursor if cursor < top else max(top, cursor - visible + 1)
        if target != top:
            self.scroll_to(y=target, animate=False, force=True)

    @property
    def half_page(self) -> int:
        """Half of the lines in view."""
        return max(1, (self.size.height - 1) // 2)

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self.reload()

    def on_click(self, event: events.Click) -> None:
        """Report the line or the score column that was clicked."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y:
            line = offset.y - 1 + self.scroll_offset.y
            if line < len(self.state.order):
                self.post_message(self.Clicked(line, None))
            return
        layout = self.table_layout
        left = self.size.width - layout.score * layout.score_count
        if layout.score_count and offset.x >= left:
            self.post_message(self.Clicked(None, layout.first_score + (offset.x - left) // layout.score))

    # ── painting ──

    @property
    def table_layout(self) -> TableLayout:
        """The columns at the current width."""
        if self._table_layout is None:
            self._table_layout = fit_columns(self.state, self.size.width)
        return self._table_layout

    def render_lines(self, crop: Region) -> list[Strip]:
        """Compute the base style once for all lines of one repaint; Textual would do it for each."""
        self._base_style = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """Render the line at `y` of what is in view."""
        base, styles, state = self._base_style, theme_styles(self.app), self.state
        lines = LayerLines(state, self.table_layout, styles, self._module_bar)
        if y == 0:
            return self._strip(lines.header(), base + styles.panel_background)
        line = y - 1 + self.scroll_offset.y
        if line >= len(state.order):
            return Strip.blank(self.size.width, base)
        row = state.rows[state.order[line]]
        return self._strip(lines.row(row, line), base + styles.cursor_background if line == state.cursor else base)

    def _strip(self, segments: Iterable[Segment], base: Style) -> Strip:
        painted = [Segment(text, base + style if style else base) for text, style, _ in segments]
        return Strip(painted).adjust_cell_length(self.size.width, base)
