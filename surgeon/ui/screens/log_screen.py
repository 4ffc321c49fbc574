"""The worker's log of this session."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from surgeon.core.checkpoint.model_location import state_directory
from surgeon.ui.screens.text_screen import FAR, TextScreen
from surgeon.ui.state.job_runner import JobRunner
from surgeon.ui.theme import ThemeStyles


class LogScreen(TextScreen):
    """The log, scrolled to its end."""

    heading = "log"

    def __init__(self, runner: JobRunner) -> None:
        super().__init__()
        self._runner = runner

    def lines(self, styles: ThemeStyles) -> Iterator[Text]:
        """Yield the newest lines last."""
        yield Text(" what libraries print goes to", styles.dim)
        yield Text(f" {state_directory() / 'worker.log'}", styles.dim)
        for entry in self._runner.log:
            for part in entry.splitlines() or [""]:
                yield Text(f" {part}", styles.accent if part.startswith("──") else styles.foreground)

    def on_mount(self) -> None:
        """Scroll to the end, once the base's `on_mount`, which Textual calls too, has filled the list."""
        self.call_after_refresh(self.action_scroll, FAR)
