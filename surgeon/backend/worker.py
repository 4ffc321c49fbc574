"""The worker process: jobs come as lines on stdin, events go as lines to the real stdout.

File descriptors 0, 1 and 2 are pointed elsewhere first, so that nothing that a library reads or prints can disturb the
channel. A thread reads the jobs, so that a cancel is seen while one runs; the end of stdin ends the process.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import BinaryIO

from surgeon import __version__
from surgeon.backend.distributed import exit_if_out_of_step, join_process_group, rank
from surgeon.backend.jobs.dispatch import perform
from surgeon.core.events import Acknowledged, AnyEvent, Event, Hello, JobFailed, JobResult, Progress, Statistics
from surgeon.core.jobs import PROTOCOL, CancelJob, JobRequest, RequestError, decode_request, encode
from surgeon.errors import Cancelled, SurgeonError, WorkerError

_PROGRESS_SECONDS = 0.1
_STAT_SECONDS = 1.0
_LEAVE_SECONDS = 2.0


class _Jobs:
    """Jobs in the order they came, each with its own switch: a cancel stops all that are here, and no later one."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[JobRequest, threading.Event]] = queue.SimpleQueue()
        self._here: set[threading.Event] = set()
        self._change = threading.Condition()
        self.current: JobRequest | None = None

    def put(self, job: JobRequest) -> None:
        switch = threading.Event()
        with self._change:
            self._here.add(switch)
        self._waiting.put((job, switch))

    def take(self) -> tuple[JobRequest, threading.Event]:
        job, switch = self._waiting.get()
        self.current = job
        return job, switch

    def done(self, switch: threading.Event) -> None:
        self.current = None
        with self._change:
            self._here.discard(switch)
            self._change.notify_all()

    def cancel(self) -> None:
        with self._change:
            for switch in self._here:
                switch.set()

    def wait_until_idle(self, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: not self._here, seconds)


class _Channel:
    """Writes events; progress of one thing at most ten times a second, its last always.

    By what it is of: evaluations that are soon over, one after another, must not keep a training's own from being told.
    """

    def __init__(self, out: BinaryIO, broken: Callable[[], None]) -> None:
        self._out = out
        self._out_of_step = broken
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    def send(self, body: AnyEvent, job: JobRequest | None = None, *, request_id: int = 0) -> None:
        """Send an event of a job; or of a request that could not be read, or of none, which is 0."""
        if isinstance(body, Progress):
            now = time.monotonic()
            if now - self._told.get(body.what, -math.inf) < _PROGRESS_SECONDS and body.done != body.total:
                return
            self._told[body.what] = now
        event = (
            Event(id=job.id, body=body, revision=job.revision) if job is not None else Event(id=request_id, body=body)
        )
        line = encode(event) + b"\n"
        try:
            with self._lock:
                self._out.write(line)
                self._out.flush()
        except BrokenPipeError:
            self._out_of_step()  # nobody listens: let the job clean up after itself


def main() -> None:
    """Serve until stdin ends; of several processes the first one does, and the others train along with it."""
    if rank() > 0:
        from surgeon.backend.nonzero_rank import follow

        follow()
    lines, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        os.nice(10)
    jobs = _Jobs()
    channel = _Channel(out, jobs.cancel)
    channel.send(Hello(protocol=PROTOCOL, version=__version__, pid=os.getpid()))
    threading.Thread(target=_listen, args=(lines, channel, jobs), daemon=True).start()
    _warm_up()
    threading.Thread(target=_tell_stats, args=(channel, jobs), daemon=True).start()
    while True:
        job, switch = jobs.take()
        try:
            _serve(channel, job, switch)
        finally:
            jobs.done(switch)
            exit_if_out_of_step()


def _listen(lines: BinaryIO, channel: _Channel, jobs: _Jobs) -> None:
    for line in lines:
        try:
            job = decode_request(line)
        except RequestError as error:
            fault = WorkerError(error.what, where=error.where, allowed=error.allowed)
            channel.send(JobFailed(error=fault.to_dict()), request_id=error.id)
            continue
        if isinstance(job.job, CancelJob):
            jobs.cancel()
        else:
            jobs.put(job)
    # Whoever started this process has gone. What is under way may clean up; then this thread can only end it so.
    jobs.cancel()
    jobs.wait_until_idle(_LEAVE_SECONDS)
    os._exit(0)


def _warm_up() -> None:
    """Import what every measurement needs while nobody waits, and keep it out of the garbage collector's sight."""
    try:
        from surgeon.backend.device import use_threads
        from surgeon.backend.scoring.score_runner import measure

        del measure
        use_threads(reserved=1)
        join_process_group()
    except Exception:  # the job that needs it will say what is missing
        traceback.print_exc()
    gc.collect()
    gc.freeze()


def _tell_stats(channel: _Channel, jobs: _Jobs) -> None:
    import psutil

    process = psutil.Process()
    while True:
        time.sleep(_STAT_SECONDS)
        job = jobs.current
        if job is not None:
            channel.send(Statistics(rss_bytes=process.memory_info().rss, **_torch_stats()), job)


def _torch_stats() -> dict[str, int]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {"device_bytes": 0, "threads": 1}
    used = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
    return {"device_bytes": used, "threads": torch.get_num_threads()}


def _serve(channel: _Channel, job: JobRequest, switch: threading.Event) -> None:
    channel.send(Acknowledged(), job)
    try:
        if switch.is_set():
            raise Cancelled
        result = perform(job.job, lambda body: channel.send(body, job), switch.is_set)
        channel.send(JobResult(result=result), job)
    except SurgeonError as error:
        channel.send(JobFailed(error=error.to_dict()), job)
    except (Exception, SystemExit) as error:  # whatever a library raises must reach the person, and not end the worker
        traceback.print_exc()
        fault = WorkerError(f"{type(error).__name__}: {error}", where=_name_of(job), hint="the log has the trace")
        channel.send(JobFailed(error=fault.to_dict()), job)


def _name_of(job: JobRequest) -> str:
    return str(type(job.job).__struct_config__.tag)
