"""The worker process: jobs come as lines on stdin, events go as lines to the real stdout.

File descriptors 1 and 2 are pointed elsewhere first, so that nothing that a library prints can disturb the channel.
A thread reads stdin, so that a cancel is seen while a job runs; the end of stdin ends the process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import threading
import time
import traceback
from typing import Any, BinaryIO

import msgspec

from surgeon import __version__
from surgeon.backend.jobs import perform
from surgeon.core.jobs import PROTOCOL, Event, Job, Kind, decode_job, encode
from surgeon.errors import SurgeonError, WorkerError

_PROGRESS_SECONDS = 0.1


class _Channel:
    """Writes events; progress at most ten times a second, the last of a job always."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._told = 0.0

    def send(self, job: Job, kind: Kind, body: dict[str, Any]) -> None:
        if kind == "progress":
            now = time.monotonic()
            if now - self._told < _PROGRESS_SECONDS and body.get("done") != body.get("total"):
                return
            self._told = now
        line = encode(Event(id=job.id, event=kind, body=body, revision=job.revision)) + b"\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()


def main() -> None:
    """Serve until stdin ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        os.nice(10)
    channel = _Channel(out)
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    cancel = threading.Event()
    threading.Thread(target=_listen, args=(channel, jobs, cancel), daemon=True).start()
    hello = {"protocol": PROTOCOL, "version": __version__, "pid": os.getpid()}
    channel.send(Job(id=0, job="hello"), "hello", hello)
    _warm_up()
    while True:
        _serve(channel, jobs.get(), cancel)


def _listen(channel: _Channel, jobs: queue.SimpleQueue[Job], cancel: threading.Event) -> None:
    with os.fdopen(0, "rb", closefd=False) as lines:
        for line in lines:
            try:
                job = decode_job(line)
            except msgspec.MsgspecError as error:
                channel.send(Job(id=0, job=""), "error", WorkerError(f"not understood: {error}", where="worker").to_dict())
                continue
            if job.job == "cancel":
                cancel.set()
            else:
                jobs.put(job)
    os._exit(0)  # whoever started this process has gone; a thread cannot end it in any gentler way


def _warm_up() -> None:
    """Import torch while nobody waits, and keep what is imported out of the garbage collector's sight."""
    from surgeon.backend.device import use_threads

    use_threads(reserved=1)
    gc.collect()
    gc.freeze()


def _serve(channel: _Channel, job: Job, cancel: threading.Event) -> None:
    cancel.clear()
    channel.send(job, "ack", {})
    try:
        result = perform(job.job, job.args, lambda kind, body: channel.send(job, kind, body), cancel.is_set)
        channel.send(job, "result", result)
    except SurgeonError as error:
        channel.send(job, "error", error.to_dict())
    except Exception as error:  # whatever a library raises must reach the person, and not end the worker
        traceback.print_exc()
        channel.send(job, "error", WorkerError(f"{type(error).__name__}: {error}", where=job.job, hint="the log has the trace").to_dict())
