"""A list whose lines can be ticked; it scrolls within its height."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

_MOST_LINES = 9


class Ticks(Widget, can_focus=True):
    """One line per choice, each of them on or off."""

    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        ("down,j", "step(1)", "down"),
        ("up,k", "step(-1)", "up"),
        ("space", "tick", "tick"),
        ("enter", "submit", "accept"),
    ]

    class Moved(Message):
        """Another line is the current one."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    class Submitted(Message):
        """Enter was pressed."""

    def __init__(self, choices: Mapping[str, Text], ticked: set[str]) -> None:
        super().__init__()
        self.choices, self.ticked, self.at, self._top = choices, ticked, 0, 0
        self._lines = min(len(choices), _MOST_LINES)
        self.styles.height = self._lines

    @property
    def current(self) -> str:
        """The name of the current line."""
        return list(self.choices)[self.at]

    def on_mount(self) -> None:
        """Tell where it starts."""
        self.action_step(0)

    def action_step(self, change: int) -> None:
        """Go to another line."""
        self.at = (self.at + change) % len(self.choices)
        self._top = min(max(self._top, self.at - self._lines + 1), self.at)
        self.refresh()
        self.post_message(self.Moved(self.current))

    def action_tick(self) -> None:
        """Tick or untick the line."""
        self.ticked ^= {self.current}
        self.refresh()

    def action_submit(self) -> None:
        """Accept."""
        self.post_message(self.Submitted())

    def on_click(self, event: events.Click) -> None:
        """Tick the line that was clicked."""
        self.at = min(self._top + event.y, len(self.choices) - 1)
        self.action_step(0)
        self.action_tick()

    def render(self) -> Text:
        """Write the lines in view; arrows say that there are more."""
        lines = []
        for at, (name, text) in list(enumerate(self.choices.items()))[self._top : self._top + self._lines]:
            first, last = at == self._top, at == self._top + self._lines - 1
            more = "↑" if first and at else "↓" if last and at < len(self.choices) - 1 else " "
            pointer = "▶" if at == self.at and self.has_focus else more
            lines.append(Text.assemble(f"{pointer} {'◉' if name in self.ticked else '○'} ", text))
        return Text("\n").join(lines)
