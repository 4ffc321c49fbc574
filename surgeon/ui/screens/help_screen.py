"""The help, generated from the command table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.text import Text
from textual.widget import Widget

from surgeon.ui.commands import commands
from surgeon.ui.screens.text_screen import TextScreen
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.theme import ThemeStyles

_KEY_CELLS = 14
_SCORE_SIGNS = (
    ("···", "is being measured"),
    ("!", "could not be measured"),
    ("~", "was measured before the last edit"),
    ("▐█▌", "length: the value, between the lowest and the highest; colour: its rank"),
)


class HelpScreen(TextScreen):
    """Every command, its keys, and why it cannot be done now."""

    heading = "help"

    def __init__(self, state: ScreenState, focused: Widget | None) -> None:
        super().__init__()
        self._state, self._about_focused = state, getattr(focused, "HELP", None)

    def lines(self, styles: ThemeStyles) -> Iterator[Text]:
        """Yield the groups of commands one after the other."""
        if self._about_focused:
            yield Text(f" {self._about_focused}", styles.foreground)
            yield Text()
        for group, members in groupby(commands(), key=lambda command: command.group):
            yield Text(f" {group}", styles.key)
            for command in members:
                reason = command.reason(self._state)
                line = Text(no_wrap=True)
                line.append(f"   {command.keys_text:<{_KEY_CELLS}} ", styles.faint if reason else styles.accent)
                line.append(command.title, styles.faint if reason else styles.foreground)
                line.append(f"   {reason.splitlines()[0]}" if reason else "", styles.faint)
                yield line
            yield Text()
        yield Text(" Scores", styles.key)
        for sign, meaning in _SCORE_SIGNS:
            yield Text.assemble((f"   {sign:<{_KEY_CELLS}} ", styles.accent), (meaning, styles.foreground))
