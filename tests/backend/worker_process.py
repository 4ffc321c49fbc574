"""A worker process, held by its pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

SECONDS = 120.0


class Worker:
    """A worker process whose events are read by a thread."""

    def __init__(self, code: str | None = None, home: Path | None = None) -> None:
        command = [sys.executable, *(["-c", code] if code else ["-m", "surgeon", "worker"])]
        environment = {**os.environ, **({"SURGEON_STATE": str(home / "state")} if home else {})}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self.events: list[dict[str, Any]] = []
        self.lines: list[bytes] = []
        self.log: list[bytes] = []
        self._arrived: Queue[dict[str, Any] | None] = Queue()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_log)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._arrived.put({**plain_line(line), "at": time.monotonic()})
        self._arrived.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def write(self, raw: bytes) -> None:
        """Write bytes to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(raw)
        self.process.stdin.flush()

    def send(self, job: str, number: int = 1, revision: int = 0, **args: Any) -> None:
        """Send a job."""
        request = {"id": number, "job": {"job": job, **args}, "revision": revision}
        self.write(json.dumps(request).encode() + b"\n")

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next event that is wanted."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                event = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                pytest.fail(f"it did not come; the worker said {self.lines[-5:]} and logged {self.log[-5:]}")
            if event is None:
                pytest.fail(f"the worker ended; it logged {self.log[-5:]}")
            self.events.append(event)
            if wanted(event):
                return event

    def end_of(self, number: int) -> dict[str, Any]:
        """Return the result or error of a job."""
        return self.wait(lambda event: event["id"] == number and event["event"] in ("result", "error"))

    def close(self) -> int:
        """Close its stdin and return its status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.close()


class PlayedWorker(Worker):
    """A worker that runs `PLAYED`: a job of any name travels as a name of a score job, its arguments as the recipe."""

    def __init__(self) -> None:
        super().__init__(PLAYED)

    def send(self, job: str, number: int = 1, revision: int = 0, **args: Any) -> None:
        """Send a job made up for tests, or a cancel."""
        if job == "cancel":
            super().send(job, number, revision)
        else:
            super().send("score", number, revision, names=[job], recipe=args)

    def end_of(self, number: int) -> dict[str, Any]:
        """Return the error of a job, or what its result holds."""
        event = super().end_of(number)
        return {**event, "body": event["body"]["scores"][0]} if event["event"] == "result" else event


def plain_line(line: bytes) -> dict[str, Any]:
    """Return an event with its kind beside its body, and of a result or an error what is in it."""
    event = json.loads(line)
    body = event["body"]
    kind = body.pop("event")
    body = body["error"] if kind == "error" else body["result"] if kind == "result" else body
    body.pop("of", None)
    return {**event, "event": kind, "body": body}


# Stands in for the real work: a job that can be told what to do, in the real loop.
PLAYED = """
import os, sys, time
import surgeon.backend.worker as worker
from surgeon.core.events import LogMessage, Progress
from surgeon.core.job_results import ScoreResult
from surgeon.errors import Cancelled

def perform(request, emit, cancelled):
    return ScoreResult(scores=[carry_out(request.names[0], request.recipe, emit, cancelled)])

def carry_out(job, args, emit, cancelled):
    if job == "speak":
        print("print", flush=True); sys.stderr.write("err\\n"); os.system("echo system"); os.write(1, b"raw\\n")
        return {"read": sys.stdin.read(), "fd": os.read(0, 10).decode()}
    if job == "count":
        for n in range(args["n"]):
            emit(Progress(done=n + 1, total=args["n"], unit="steps", what="counting"))
            time.sleep(args["pause"])
    if job == "wait":
        emit(LogMessage(text="waiting"))
        while not cancelled():
            time.sleep(0.01)
        if args.get("stubborn"):
            time.sleep(600)
        open(args["left"], "w").write("clean") if "left" in args else None
        raise Cancelled
    if job == "leave":
        sys.exit(3)
    if job == "nan":
        return {"value": object()}
    return {"job": job, "torch": "torch" in sys.modules}

worker.perform = perform
if os.environ.get("COLD"):
    worker._warm_up = lambda: None
worker.main()
"""
