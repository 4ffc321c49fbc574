"""A choice of one word among a few, on one line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from surgeon.ui.theme import theme_styles


class InlineChoice(Widget, can_focus=True):
    """One of a few words; ← and → choose."""

    BINDINGS = [("left,h", "step(-1)", "previous"), ("right,l,space", "step(1)", "next"), ("enter", "submit", "accept")]  # noqa: RUF012

    class Changed(Message):
        """Another word was chosen."""

    class Submitted(Message):
        """Enter was pressed."""

    def __init__(self, words: Sequence[str], value: str, *, id: str) -> None:
        super().__init__(id=id)
        self.words, self.value = words, value
        self.styles.height = 1

    def action_step(self, change: int) -> None:
        """Choose a neighbour."""
        self.value = self.words[(self.words.index(self.value) + change) % len(self.words)]
        self.refresh()
        self.post_message(self.Changed())

    def action_submit(self) -> None:
        """Accept."""
        self.post_message(self.Submitted())

    def on_click(self, event: events.Click) -> None:
        """Choose the next word."""
        del event
        self.action_step(1)

    def render(self) -> Text:
        """Render the words, the chosen one underlined."""
        styles = theme_styles(self.app)
        text = Text()
        for word in self.words:
            chosen = word == self.value
            style = (styles.key if self.has_focus else styles.title) + Style(underline=True) if chosen else styles.dim
            text.append("▸" if chosen else " ", styles.accent)
            text.append(word, style)
            text.append("  ")
        return text
