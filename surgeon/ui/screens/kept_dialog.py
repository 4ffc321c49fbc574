"""Offers steps that other sessions on the model have kept."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import Static

from surgeon.core.journal import Kept
from surgeon.ui.screens.dialog import Dialog

_MOST = 9


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
