"""The base of the dialogs."""

from __future__ import annotations

from typing import TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from surgeon.errors import SurgeonError
from surgeon.ui.state.layer_listing import step_numbers_text
from surgeon.ui.theme import ThemeStyles, theme_styles

Result = TypeVar("Result")


class Dialog(ModalScreen[Result]):
    """A box in the middle of the screen; esc leaves it without a result."""

    BINDINGS = [("escape", "dismiss(None)", "leave")]  # noqa: RUF012 - Textual declares it so
    heading = ""
    key_hints = "enter accept · esc leave"

    def compose(self) -> ComposeResult:
        """Yield the box."""
        with Vertical(classes="dialog") as box:
            box.border_title, box.border_subtitle = self.heading, self.key_hints
            yield from self.compose_body()

    def compose_body(self) -> ComposeResult:
        """Yield the widgets in the box."""
        raise NotImplementedError

    @property
    def theme_styles(self) -> ThemeStyles:
        """The styles of the current theme."""
        return theme_styles(self.app)

    def show_error(self, error: SurgeonError | None) -> None:
        """Show why the input is refused, or clear that."""
        self.query_one("#validation", Static).update(
            Text(step_numbers_text(str(error)) if error else "", self.theme_styles.error)
        )
