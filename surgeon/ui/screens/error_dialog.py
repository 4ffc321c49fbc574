"""Shows an error in full."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import Static

from surgeon.errors import SurgeonError
from surgeon.ui.screens.dialog import Dialog


class ErrorDialog(Dialog[None]):
    """All parts of an error: what, where, what is allowed, what to do next."""

    key_hints = "esc or enter close"
    BINDINGS = [("enter", "dismiss(None)", "close")]  # noqa: RUF012 - Textual declares it so

    def __init__(self, title: str, error: SurgeonError) -> None:
        super().__init__()
        self.heading, self._error = f"{title}: failed", error

    def compose_body(self) -> ComposeResult:
        """Yield the parts that the error has."""
        styles, error = self.theme_styles, self._error
        yield Static(Text(error.what, styles.error + Style(bold=True)))
        for name, part in (("where", error.where), ("allowed", error.allowed), ("next", error.hint)):
            if part:
                yield Static(Text.assemble((f"{name:<8}", styles.dim), (part, styles.foreground)))
        yield Static(Text("Nothing is lost: the recipe is as it was.", styles.dim))
