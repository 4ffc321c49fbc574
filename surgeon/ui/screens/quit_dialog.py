"""Asks what to do with unsaved steps."""

from __future__ import annotations

from typing import Literal

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import Static

from surgeon.session import Session
from surgeon.ui.screens.dialog import Dialog

QuitChoice = Literal["write", "keep", "discard"]


class QuitDialog(Dialog[QuitChoice]):
    """Write them to the recipe, keep them in the journal, or discard them."""

    heading, key_hints = "quit", "esc stay"
    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        ("w", "dismiss('write')", "write"),
        ("k", "dismiss('keep')", "keep"),
        ("d", "dismiss('discard')", "discard"),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def compose_body(self) -> ComposeResult:
        """Yield the three choices."""
        styles = self.theme_styles
        yield Static(Text("The recipe on disk does not hold what is on the table.", styles.title))
        for key, text in (
            ("w", f"write it to {self._session.recipe_path or 'a file'} and quit"),
            ("k", "keep the steps: the next start recovers them"),
            ("d", "discard them"),
        ):
            yield Static(Text.assemble((f" {key} ", styles.key), (text, styles.foreground)))
