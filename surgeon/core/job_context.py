"""What every job needs and no job is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from surgeon.core.events import AnyEvent, LogMessage, Progress
from surgeon.errors import Cancelled

Emit = Callable[[AnyEvent], None]


IsCancelled = Callable[[], bool]


@dataclass(frozen=True)
class JobContext:
    """What every job needs and no job is about: who is told, whether to stop, where and on what it runs."""

    emit: Emit
    is_cancelled: IsCancelled
    root: Path = Path()
    device: str | None = None
    dtype: str | None = None

    def log(self, text: str) -> None:
        """Tell a line for the log."""
        self.emit(LogMessage(text=text))

    def warn(self, text: str) -> None:
        """Tell a warning."""
        self.emit(LogMessage(text=text, level="warning"))

    def progress(self, done: int, total: int, unit: str, what: str, figures: Mapping[str, float] | None = None) -> None:
        """Tell how far the job is."""
        self.emit(Progress(done=done, total=total, unit=unit, what=what, figures=dict(figures or {})))

    def stop_if_cancelled(self) -> None:
        """Raise Cancelled where a person has cancelled the job."""
        if self.is_cancelled():
            raise Cancelled
