"""Asks what to do with unsaved steps: when quitting, and when the model is opened again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import Static

from surgeon.core.journal import Kept
from surgeon.session import Session
from surgeon.ui.screens.dialog import Dialog

_MOST = 9
QuitChoice = Literal["write", "keep", "discard", "end"]


class QuitDialog(Dialog[QuitChoice]):
    """Write them to the recipe, keep them in the journal, or discard them; or only end the job that is under way."""

    heading, key_hints = "quit", "esc stay"
    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        ("w", "choose('write')", "write"),
        ("k", "choose('keep')", "keep"),
        ("d", "choose('discard')", "discard"),
        ("e", "choose('end')", "end"),
    ]

    def __init__(self, session: Session, job_title: str | None) -> None:
        super().__init__()
        self._session, self._job_title = session, job_title
        self._choices: dict[str, tuple[str, str]] = {
            "write": ("w", f"write it to {session.recipe_path or 'a file'} and quit"),
            "keep": ("k", "keep the steps: the next start recovers them"),
            "discard": ("d", "discard them"),
        } if session.unsaved else {"end": ("e", "end the job and quit")}  # fmt: skip

    def compose_body(self) -> ComposeResult:
        """Yield what quitting would lose, and the choices."""
        styles = self.theme_styles
        if self._job_title is not None:
            yield Static(Text(f"{self._job_title} is under way: quitting ends it.", styles.warning))
        if self._session.unsaved:
            yield Static(Text("The recipe on disk does not hold the steps that are applied.", styles.title))
        for key, text in self._choices.values():
            yield Static(Text.assemble((f" {key} ", styles.key), (text, styles.foreground)))

    def action_choose(self, choice: QuitChoice) -> None:
        """Take a choice that is offered."""
        if choice in self._choices:
            self.dismiss(choice)


class KeptDialog(Dialog[Kept]):
    """Results in the steps to go on with; esc leaves them where they are."""

    heading, key_hints = "steps that were kept", "a number goes on with them · esc leaves them kept"
    BINDINGS = [(str(number), f"choose({number})", "go on") for number in range(1, _MOST + 1)]  # noqa: RUF012

    def __init__(self, kept: Sequence[Kept]) -> None:
        super().__init__()
        self._kept = kept[:_MOST]

    def compose_body(self) -> ComposeResult:
        """Yield one line for each place."""
        styles = self.theme_styles
        yield Static(Text("Sessions on this model have left steps that no recipe holds.", styles.title))
        for number, kept in enumerate(self._kept, start=1):
            where = f"on {kept.recipe}" if kept.recipe is not None else "of a session without a recipe"
            text = f"{kept.applied} step{'' if kept.applied == 1 else 's'} {where}"
            yield Static(Text.assemble((f" {number} ", styles.key), (text, styles.foreground)))

    def action_choose(self, number: int) -> None:
        """Go on with the steps of a line."""
        if number <= len(self._kept):
            self.dismiss(self._kept[number - 1])
