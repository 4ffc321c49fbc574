"""The bar at the bottom: the keys that work now, generated from the command table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from surgeon.ui.commands import Command, Mode
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.widgets.base_bar import StatusBar

_WIDE = 100
_RIGHT_RANKS = range(60, 65)
"""The ranks that stand at the right end and are never left out, such as help."""


class KeyBar(StatusBar):
    """One line; a click on a key does what the key does."""

    def __init__(self, state: ScreenState, commands: Sequence[Command], *, id: str) -> None:
        super().__init__(state, id=id)
        self.commands = commands

    def render_line(self, y: int) -> Strip:
        """Render the keys. Not through `render`: Textual would draw what can be clicked as a link."""
        del y
        base = self.rich_style
        rendered = self._keys().render(self.app.console, end="")
        segments = [Segment(text, base + style if style else base) for text, style, _ in rendered]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def _keys(self) -> Text:
        """Render as many keys as fit, dimmed where they do nothing now."""
        mode: Mode = "pending" if self.state.pending_step is not None else "browse"
        shown = sorted(
            (command for command in self.commands if command.footer and mode in command.modes),
            key=lambda command: command.rank,
        )
        gap = "  " if self.size.width >= _WIDE else " "
        right = Text(gap).join([self._key(command) for command in shown if command.rank in _RIGHT_RANKS])
        text = Text(no_wrap=True)
        for command in (command for command in shown if command.rank not in _RIGHT_RANKS):
            key = self._key(command)
            if text.cell_len + len(gap) + key.cell_len + len(gap) + right.cell_len + 1 > self.size.width:
                break
            text.append(gap if text.cell_len else " ").append_text(key)
        text.append(" " * (self.size.width - text.cell_len - right.cell_len - 1))
        return text.append_text(right)

    def _key(self, command: Command) -> Text:
        styles, disabled = self.theme_styles, command.reason(self.state) is not None
        meta = Style(meta={"@click": f"screen.command('{command.id}')"})
        return Text.assemble(
            (command.key_text, (styles.faint if disabled else styles.key) + meta),
            (f" {command.footer}", (styles.faint if disabled else styles.dim) + meta),
        )
