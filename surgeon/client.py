"""Starts a worker and yields its events: a process on a pipe, local or over any command, or this process itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from surgeon.core.checkpoint.model_location import state_directory
from surgeon.core.events import AnyEvent, Event, Hello, JobFailed, JobResult, LogMessage, read_event
from surgeon.core.job_results import AnyResult
from surgeon.core.jobs import PROTOCOL, AnyJob, CancelJob, JobRequest, encode
from surgeon.errors import Cancelled, SurgeonError, WorkerError, error_from_dict

OnEvent = Callable[[Event], None]
_LINE_LIMIT = 64 * 2**20
_LEAVE_SECONDS = 3.0
_DEATHS: Mapping[int, str] = {
    signal.SIGKILL: "it may have run out of memory",
    signal.SIGBUS: "a file became shorter while it was read: was the model changed or removed?",
}


def local_command() -> tuple[str, ...]:
    """Return the command of a worker on this machine."""
    return (sys.executable, "-m", "surgeon", "worker")


class WorkerClient:
    """A worker process. All its events go to `on_event`; `run` also awaits one job's end.

    The process has its own session, so that it can be killed as a group and is scheduled apart from the terminal.
    """

    def __init__(self, on_event: OnEvent, command: Sequence[str] | str | None = None) -> None:
        """Name the command; nothing starts yet. Text is split as a shell splits words."""
        words = shlex.split(command) if isinstance(command, str) else command
        self.command = tuple(words or local_command())
        self.hello: Hello | None = None
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[AnyResult]] = {}
        self._greeted: asyncio.Future[None] | None = None
        self._starting = asyncio.Lock()
        self._log_hint = ""
        self._next = 1

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def busy(self) -> tuple[int, ...]:
        """Ids of the jobs under way."""
        return tuple(self._waiting)

    async def start(self) -> None:
        """Start the process and wait for its greeting.

        Raises:
            WorkerError: the command cannot be started, ends at once, or speaks another protocol.
        """
        async with self._starting:
            if not self.alive:
                await self._launch()
            assert self._greeted is not None
            await asyncio.shield(self._greeted)

    async def _launch(self) -> None:
        if self._reader is not None:  # the last words of the one before must not be taken for this one's
            self._signal(signal.SIGKILL)
            await self._reader
        log = self._open_log()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True, limit=_LINE_LIMIT,
            )  # fmt: skip
        except OSError as error:
            raise WorkerError(f"cannot be started: {error.strerror}", where=shlex.join(self.command)) from error
        finally:
            os.close(log)
        self._greeted = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self._process))

    def _open_log(self) -> int:
        """Open the file for what the worker's libraries say; where it cannot be written, that goes nowhere."""
        path = state_directory() / "worker.log"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            text = f"the worker keeps no log: {path} cannot be written: {error.strerror}; SURGEON_STATE moves it"
            self._on_event(Event(id=0, body=LogMessage(level="warning", text=text)))
            self._log_hint = "SURGEON_STATE names a directory for its log"
            return os.open(os.devnull, os.O_WRONLY)
        self._log_hint = f"see {path}"
        return log

    async def submit(self, job: AnyJob, revision: int = 0) -> int:
        """Send a job, starting the worker if need be, and return its id."""
        return (await self._submit(job, revision))[0]

    async def run(self, job: AnyJob, revision: int = 0) -> AnyResult:
        """Submit a job and wait for it.

        Raises:
            SurgeonError: what the job raised; Cancelled or WorkerError where it was cancelled or the worker died.
        """
        return await (await self._submit(job, revision))[1]

    async def result(self, job: int) -> AnyResult:
        """Wait for a submitted job that is still under way; raises as `run` does."""
        if job not in self._waiting:
            raise WorkerError(f"job {job} is over", where="worker", hint="its end was an event")
        return await asyncio.shield(self._waiting[job])

    async def _submit(self, job: AnyJob, revision: int) -> tuple[int, asyncio.Future[AnyResult]]:
        await self.start()
        number, self._next = self._next, self._next + 1
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._send(JobRequest(id=number, job=job, revision=revision))
        return number, future

    async def cancel(self) -> None:
        """Ask the worker to stop what it does, between two tensors or batches."""
        if self.alive:
            await self._send(JobRequest(id=0, job=CancelJob()))

    async def kill(self) -> None:
        """End the process group at once; jobs under way raise Cancelled. The next `submit` starts another worker."""
        if self._process is None:
            return
        self._fail_all(Cancelled("the worker was stopped"))
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(Cancelled("the worker was stopped"))
        self._signal(signal.SIGKILL)
        await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def close(self) -> None:
        """End the worker, politely first."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _LEAVE_SECONDS)
        await self.kill()

    def _signal(self, number: signal.Signals) -> None:
        reading = self._reader is not None and not self._reader.done()
        if self._process is not None and (reading or self._process.returncode is None):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def _send(self, job: JobRequest) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(job) + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerError("has gone", where="worker", hint="try again: another one starts") from error

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        broken: WorkerError | None = None
        try:
            async for line in process.stdout:
                self._take(read_event(line))
        except WorkerError as error:
            broken = error
            self._signal(signal.SIGKILL)
        except Exception as error:  # a line beyond the limit, or a listener that failed: nobody may wait for ever
            broken = WorkerError(f"its words could not be taken in: {error!r}", where="worker")
            self._signal(signal.SIGKILL)
        self._ended(await process.wait(), broken)

    def _take(self, event: Event) -> None:
        body = event.body
        if isinstance(body, Hello):
            self._greet(body)
        if isinstance(body, JobResult | JobFailed):
            future = self._waiting.pop(event.id, None)
            if future is None or future.done():
                pass
            elif isinstance(body, JobResult):
                future.set_result(body.result)
            else:
                future.set_exception(error_from_dict(body.error))
                future.exception()  # a front end that only listens to events need not await it
        self._on_event(event)

    def _greet(self, hello: Hello) -> None:
        self.hello = hello
        if self._greeted is None or self._greeted.done():
            return
        if hello.protocol == PROTOCOL:
            self._greeted.set_result(None)
        else:
            self._greeted.set_exception(
                WorkerError(f"speaks another protocol (surgeon {hello.version})", where=shlex.join(self.command))
            )

    def _ended(self, code: int, broken: WorkerError | None) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        hint = _DEATHS.get(-code, self._log_hint)
        error = broken or WorkerError(how, where="worker", hint=hint)
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(error)
        if self._waiting:
            self._fail_all(error)

    def _fail_all(self, error: SurgeonError) -> None:
        waiting, self._waiting = self._waiting, {}
        pending = {number: future for number, future in waiting.items() if not future.done()}
        for future in pending.values():
            future.set_exception(error)
            future.exception()
        for number in pending:
            self._on_event(Event(id=number, body=JobFailed(error=error.to_dict())))


def run_job(job: AnyJob, on_event: OnEvent, worker: str | None = None) -> AnyResult:
    """Run one job to its end: in this process, or in a worker started with the command `worker`.

    Raises:
        SurgeonError: what the job raised; Cancelled on Ctrl+C.
    """
    if worker is None:
        from surgeon.backend.distributed import join_process_group, rank

        if rank() > 0:
            from surgeon.backend.nonzero_rank import follow

            follow()
        join_process_group()
        return _run_here(job, on_event)
    return asyncio.run(_run_there(job, on_event, worker))


def _run_here(job: AnyJob, on_event: OnEvent) -> AnyResult:
    from surgeon.backend.jobs.dispatch import perform

    cancelled = False

    def interrupt(*_: object) -> None:
        nonlocal cancelled
        if cancelled:
            raise KeyboardInterrupt
        cancelled = True

    def emit(body: AnyEvent) -> None:
        on_event(Event(id=1, body=body))

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        return perform(job, emit, lambda: cancelled)
    except KeyboardInterrupt as error:
        raise Cancelled from error
    finally:
        signal.signal(signal.SIGINT, before)


async def _run_there(job: AnyJob, on_event: OnEvent, worker: str) -> AnyResult:
    client = WorkerClient(on_event, worker)
    loop = asyncio.get_running_loop()

    asked: list[asyncio.Task[None]] = []

    def interrupt() -> None:
        politely = client.busy and not asked
        asked.append(loop.create_task(client.cancel() if politely else client.kill()))

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await client.run(job)
    finally:
        await client.close()
