"""The base of the screens that show text only."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.app import ComposeResult
from textual.screen import ModalScreen

from surgeon.ui.theme import ThemeStyles, theme_styles
from surgeon.ui.widgets.text_list import TextList

FAR = 100_000
"""More lines than any text has."""


class TextScreen(ModalScreen[None]):
    """A list of lines in the full height of the terminal."""

    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        ("escape,q,enter,question_mark,L", "dismiss(None)", "close"),
        ("j,down", "scroll(1)", "down"),
        ("k,up", "scroll(-1)", "up"),
        ("g,home", f"scroll({-FAR})", "top"),
        ("G,end", f"scroll({FAR})", "bottom"),
        ("ctrl+d,pagedown,space", "scroll(10)", "page"),
        ("ctrl+u,pageup", "scroll(-10)", "page"),
    ]
    heading = ""

    def compose(self) -> ComposeResult:
        """Yield the list."""
        self.text_list = TextList(classes="text-screen")
        self.text_list.border_title, self.text_list.border_subtitle = self.heading, "j k scroll · esc close"
        yield self.text_list

    def on_mount(self) -> None:
        """Fill the list."""
        self.text_list.set_lines(list(self.lines(theme_styles(self.app))))
        self.text_list.focus()

    def lines(self, styles: ThemeStyles) -> Iterable[Text]:
        """Return the lines to show."""
        raise NotImplementedError

    def action_scroll(self, change: int) -> None:
        """Scroll."""
        self.text_list.move(change)
