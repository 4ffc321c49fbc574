"""Asks for the file name of the recipe."""

from __future__ import annotations

from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.widgets import Input, Static

from surgeon.errors import SurgeonError
from surgeon.ui.screens.dialog import Dialog


class SaveDialog(Dialog[str]):
    """Results in the name of a file that does not exist yet."""

    heading = "write the recipe"

    def __init__(self, suggestion: str) -> None:
        super().__init__()
        self._suggestion = suggestion

    def compose_body(self) -> ComposeResult:
        """Yield the input."""
        yield Static("file name", classes="label")
        yield Input(self._suggestion, id="path", compact=True)
        yield Static(id="validation")

    @on(Input.Submitted)
    def accept(self, event: Input.Submitted) -> None:
        """Accept the name, if no file has it."""
        path = Path(event.value).expanduser()
        if path.exists():
            self.show_error(SurgeonError("is there already", where=str(path), hint="take another name"))
        elif event.value.strip():
            self.dismiss(event.value.strip())
