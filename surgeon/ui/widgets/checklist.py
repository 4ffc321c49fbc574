"""A list of choices that can be checked; it scrolls within its height."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget


class Checklist(Widget, can_focus=True):
    """One line per choice, each of them on or off."""

    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        ("down,j", "step(1)", "down"),
        ("up,k", "step(-1)", "up"),
        ("space", "toggle_check", "tick"),
        ("enter", "submit", "accept"),
    ]

    class Moved(Message):
        """Another line is the current one."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    class Submitted(Message):
        """Enter was pressed."""

    def __init__(self, choices: Mapping[str, Text], checked: set[str], *, most_lines: int = 9) -> None:
        super().__init__()
        self.choices, self.checked, self.index, self._top = choices, checked, 0, 0
        self._height = min(len(choices), most_lines)
        self.styles.height = self._height

    @property
    def current(self) -> str:
        """The name of the current line."""
        return list(self.choices)[self.index]

    def on_mount(self) -> None:
        """Report the first line as the current one."""
        self.action_step(0)

    def action_step(self, change: int) -> None:
        """Go to another line."""
        self.index = (self.index + change) % len(self.choices)
        self._top = min(max(self._top, self.index - self._height + 1), self.index)
        self.refresh()
        self.post_message(self.Moved(self.current))

    def action_toggle_check(self) -> None:
        """Check or uncheck the current line."""
        self.checked ^= {self.current}
        self.refresh()

    def action_submit(self) -> None:
        """Accept."""
        self.post_message(self.Submitted())

    def on_click(self, event: events.Click) -> None:
        """Check or uncheck the line that was clicked."""
        self.index = min(self._top + event.y, len(self.choices) - 1)
        self.action_step(0)
        self.action_toggle_check()

    def render(self) -> Text:
        """Render the lines in view; arrows indicate more of them."""
        lines = []
        for index, (name, text) in list(enumerate(self.choices.items()))[self._top : self._top + self._height]:
            first, last = index == self._top, index == self._top + self._height - 1
            more = "↑" if first and index else "↓" if last and index < len(self.choices) - 1 else " "
            pointer = "▶" if index == self.index and self.has_focus else more
            lines.append(Text.assemble(f"{pointer} {'◉' if name in self.checked else '○'} ", text))
        return Text("\n").join(lines)
