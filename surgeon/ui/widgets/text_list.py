"""A scrolling list of styled lines: the base of the panes, the help and the log."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from surgeon.ui.theme import theme_styles


def cut_strip(strip: Strip, width: int, base: Style) -> Strip:
    """Return a strip of a width; what does not fit ends with `…`."""
    if strip.cell_length <= width or width < 1:
        return strip.adjust_cell_length(width, base)
    return Strip([*strip.crop(0, width - 1), Segment("…", base)]).adjust_cell_length(width, base)


class TextList(ScrollView, can_focus=True, inherit_bindings=False):
    """Renders `rich.text.Text` lines; long ones are cut. A cursor is drawn where `cursor` is not None."""

    class Clicked(Message):
        """A line was clicked."""

        def __init__(self, widget: TextList, line: int) -> None:
            super().__init__()
            self.widget, self.line = widget, line

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.lines: Sequence[Text] = ()
        self.cursor: int | None = None
        self._base_style = Style.null()

    @property
    def half_page(self) -> int:
        """Half of the lines in view."""
        return max(1, self.size.height // 2)

    def set_lines(self, lines: Sequence[Text]) -> None:
        """Show these lines."""
        self.lines = lines
        self.virtual_size = Size(0, len(lines))
        self.refresh()

    def move(self, change: int) -> None:
        """Scroll, or move the cursor if there is one."""
        if self.cursor is None:
            self.scroll_to(y=self.scroll_offset.y + change, animate=False, force=True)
            return
        self.cursor = min(max(self.cursor + change, 0), max(0, len(self.lines) - 1))
        top, height = self.scroll_offset.y, max(1, self.size.height)
        target = self.cursor if self.cursor < top else max(top, self.cursor - height + 1)
        self.scroll_to(y=target, animate=False, force=True)
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Report which line was clicked."""
        offset = event.get_content_offset(self)
        if offset is not None:
            self.post_message(self.Clicked(self, offset.y + self.scroll_offset.y))

    def render_lines(self, crop: Region) -> list[Strip]:
        """Compute the base style once for all lines of one repaint; Textual would do it for each."""
        self._base_style = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """Render the line at `y` of what is in view."""
        width, line = self.size.width, y + self.scroll_offset.y
        base = self._base_style
        if line == self.cursor and self.has_focus:
            base += theme_styles(self.app).cursor_background
        if line >= len(self.lines):
            return Strip.blank(width, base)
        rendered = self.lines[line].render(self.app.console, end="")
        segments = [Segment(text, base + style if style else base) for text, style, _ in rendered]
        return cut_strip(Strip(segments), width, base)
