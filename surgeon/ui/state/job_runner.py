"""The worker as the interface sees it: one job at a time, its events waiting to be shown, its log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgeon.client import WorkerClient
from surgeon.core.events import Event
from surgeon.core.training_events import is_training
from surgeon.errors import SurgeonError, WorkerError
from surgeon.ui.state.training_progress import Lesson

_LOG_LINES = 2000
_SURE_SECONDS = 0.5


@dataclass
class Running:
    """The job under way. `total` is 0 until the worker says how much there is; `lesson` is set while one is trained."""

    title: str
    started: float = field(default_factory=time.monotonic)
    what: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    first_done: float = 0
    first_time: float = 0
    cancelling: bool = False
    lesson: Lesson | None = None

    def progress(self, body: Mapping[str, Any]) -> None:
        """Take in a progress event; a new `what` measures its own speed."""
        if is_training(body):
            self.lesson = self.lesson or Lesson()
            self.lesson.take(body)
        now = time.monotonic()
        if body.get("what") != self.what or not self.first_time:
            self.first_done, self.first_time = float(body.get("done") or 0), now
        self.what, self.unit = str(body.get("what") or ""), str(body.get("unit") or "")
        self.done, self.total = float(body.get("done") or 0), float(body.get("total") or 0)

    @property
    def elapsed(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """An estimate, or None while there is too little to go by."""
        spent, made = time.monotonic() - self.first_time, self.done - self.first_done
        sure = made > 0 and spent > _SURE_SECONDS and self.total > self.done
        return spent / made * (self.total - self.done) if sure else None


class Desk:
    """Hands jobs to the worker and keeps what it says until the next tick of the screen."""

    def __init__(self, worker: str | None) -> None:
        self.events: deque[Event] = deque()
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.running: Running | None = None
        self.crash: str | None = None
        self.resident_bytes = 0
        self.client = WorkerClient(self.events.append, worker)

    async def run(self, job: str, args: Mapping[str, Any], title: str, revision: int) -> Mapping[str, Any]:
        """Run a job to its end.

        Raises:
            SurgeonError: what the job raised; Cancelled or WorkerError where it was stopped or the worker died.
        """
        self.running, self.crash = Running(title), None
        self.log.append(f"── {title}")
        try:
            return await self.client.run(job, args, revision)
        except SurgeonError as error:
            if isinstance(error, WorkerError) and not self.client.alive:
                self.crash = f"worker {error.what}"
            self.log.append(str(error))
            raise
        finally:
            self.running = None

    async def cancel(self) -> None:
        """Ask the job to stop; asked again, end the worker."""
        if self.running is None:
            return
        if self.running.cancelling:
            await self.client.kill()
        else:
            self.running.cancelling = True
            await self.client.cancel()

    async def restart(self) -> None:
        """Start the worker anew, so that the next job finds it ready.

        Raises:
            WorkerError: it does not start.
        """
        self.crash = None
        await self.client.kill()
        await self.client.start()

    async def close(self) -> None:
        """End the worker; at once where it is busy."""
        if self.running is not None:
            await self.client.kill()
        await self.client.close()

    def take(self, event: Event) -> None:
        """Take in what is no score: progress, log lines, memory."""
        body = event.body
        if event.event == "progress" and self.running is not None:
            self.running.progress(body)
        elif event.event == "log":
            self.log.append(str(body.get("text", "")))
        elif event.event == "stat":
            self.resident_bytes = int(body.get("rss_bytes") or 0)
        elif event.event == "hello":
            self.log.append(f"worker {body.get('pid', '')}: surgeon {body.get('version', '')}")
