"""The base of the bars above and below the panes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widget import Widget

from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.theme import ThemeStyles, theme_styles


class StatusBar(Widget):
    """A widget of one or a few lines of text about the screen's state."""

    def __init__(self, state: ScreenState, *, id: str) -> None:
        super().__init__(id=id)
        self.state = state

    @property
    def theme_styles(self) -> ThemeStyles:
        """The styles of the current theme."""
        return theme_styles(self.app)


def join_parts(parts: Sequence[str], styles: ThemeStyles) -> Text:
    """Join short texts with separators."""
    return Text(" · ", styles.faint).join([Text(part, styles.foreground) for part in parts])
