"""The worker as the interface uses it: one job at a time, its waiting events, its log."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from surgeon.client import WorkerClient
from surgeon.core.events import Event, Hello, LayerScored, LogMessage, Progress, Statistics
from surgeon.core.job_results import AnyResult, CheckResult
from surgeon.core.jobs import AnyJob, CheckJob
from surgeon.core.training_figures import is_training
from surgeon.errors import ArchitectureError, CheckpointError, SurgeonError, WorkerError
from surgeon.ui.state.score_columns import ScoreColumns
from surgeon.ui.state.training_progress import TrainingProgress

_LOG_LINES = 2000
_MIN_ESTIMATE_SECONDS = 0.5


@dataclass(frozen=True)
class JobDefaults:
    """What the command line sets for all jobs; None leaves the choice to the worker."""

    data: str | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass
class RunningJob:
    """The job on the worker. `total` is 0 until the worker reports it; `training` is set while a step is trained."""

    title: str
    started: float = field(default_factory=time.monotonic)
    what: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    first_done: float = 0
    first_time: float = 0
    cancelling: bool = False
    training: TrainingProgress | None = None

    def update(self, event: Progress) -> None:
        """Take a progress event; the speed is measured anew for each `what`."""
        if is_training(event.figures):
            self.training = self.training or TrainingProgress()
            self.training.update(event)
        now = time.monotonic()
        if event.what != self.what or not self.first_time:
            self.first_done, self.first_time = event.done, now
        self.what, self.unit, self.done, self.total = event.what, event.unit, event.done, event.total

    @property
    def elapsed(self) -> float:
        """Seconds since the job was requested."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """An estimate, or None while there is too little to base it on."""
        elapsed, done = time.monotonic() - self.first_time, self.done - self.first_done
        enough = done > 0 and elapsed > _MIN_ESTIMATE_SECONDS and self.total > self.done
        return elapsed / done * (self.total - self.done) if enough else None


class JobRunner:
    """Runs jobs on the worker and keeps its events until the screen handles them.

    fit_wanted: a worker has started, which can be asked to judge the base.
    """

    def __init__(self, worker: str | None) -> None:
        self.events: deque[Event] = deque()
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.running: RunningJob | None = None
        self.crash: str | None = None
        self.resident_bytes = 0
        self.fit_wanted = False
        self.client = WorkerClient(self.events.append, worker)

    async def run(self, job: AnyJob, title: str, revision: int) -> AnyResult:
        """Run a job to its end.

        Raises:
            SurgeonError: what the job raised; Cancelled or WorkerError where it was stopped or the worker died.
        """
        self.running, self.crash = RunningJob(title), None
        self.log.append(f"── {title}")
        try:
            return await self.client.run(job, revision)
        except SurgeonError as error:
            if isinstance(error, WorkerError) and not self.client.alive:
                self.crash = f"worker {error.what}"
            self.log.append(str(error))
            raise
        finally:
            self.running = None

    async def check(self, job: CheckJob) -> str:
        """Have the base judged quietly, beside whatever else there is to do; return what is wrong, empty if nothing."""
        try:
            result = await self.client.run(job)
        except (CheckpointError, ArchitectureError) as error:
            return str(error)
        except SurgeonError as error:
            self.log.append(f"the base was not judged: {error}")
            return ""
        assert isinstance(result, CheckResult)
        self.log.append(f"the base {result.text}")
        return "" if result.whole else f"the base {result.text}"

    async def prepare(self) -> None:
        """Start the worker before there is a job for it: it is then asked to judge the base."""
        try:
            await self.client.start()
        except WorkerError as error:
            self.log.append(f"the base was not judged: {error}")

    async def cancel(self) -> None:
        """Ask the job to stop; the second time, end the worker."""
        if self.running is None:
            return
        if self.running.cancelling:
            await self.client.kill()
        else:
            self.running.cancelling = True
            await self.client.cancel()

    async def restart(self) -> None:
        """Restart the worker, so that it is ready for the next job.

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

    def handle_events(self, columns: ScoreColumns) -> tuple[set[str], bool]:
        """Handle the waiting events. Return the layers with new scores, and whether there were any events."""
        scored: set[str] = set()
        any_events = bool(self.events)
        while self.events:
            body = self.events.popleft().body
            if isinstance(body, LayerScored):
                if columns.add_value(body.score, body.layer, body.value, body.error, body.matrices):
                    scored.add(body.layer)
            elif isinstance(body, Progress) and self.running is not None:
                self.running.update(body)
            elif isinstance(body, LogMessage):
                self.log.append(body.text)
            elif isinstance(body, Statistics):
                self.resident_bytes = body.rss_bytes
            elif isinstance(body, Hello):
                self.fit_wanted = True
                self.log.append(f"worker {body.pid}: surgeon {body.version}")
        return scored, any_events
