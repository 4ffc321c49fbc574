from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.client import WorkerClient, local_command, run_job
from surgeon.core.events import Acknowledged, Event, JobFailed, LogMessage, Progress
from surgeon.core.job_results import AnyResult, ScoreResult
from surgeon.core.jobs import PROTOCOL, ScoreJob
from surgeon.errors import Cancelled, RecipeError, WorkerError
from tests.faults import blocked

FAKE = """
import json, os, signal, sys, time

def say(job, event, **body):
    if event == "result":
        body = {"result": {"of": "score", "scores": [body]}}
    if event == "error":
        body = {"error": body}
    sys.stdout.write(json.dumps({"id": job, "body": {"event": event, **body}}) + "\\n")
    sys.stdout.flush()

greeting = sys.argv[1] if len(sys.argv) > 1 else ""
if greeting == "silent":
    time.sleep(60)
if greeting == "dies":
    sys.exit(7)
say(0, "hello", protocol=99 if greeting == "foreign" else PROTOCOL, version="0", pid=os.getpid())
waiting = None
for line in sys.stdin:
    job = json.loads(line)
    number, job = job["id"], job["job"]
    name, args = ("cancel", {}) if job["job"] == "cancel" else (job["names"][0], job["recipe"])
    if name == "cancel":
        if waiting is not None:
            say(waiting, "error", kind="Cancelled", what="cancelled", where="", allowed="", hint="")
        waiting = None
        continue
    say(number, "ack")
    if name == "echo":
        say(number, "progress", done=1, total=2, unit="steps", what="")
        say(number, "result", said=args)
    elif name == "refuse":
        say(number, "error", kind="RecipeError", what="no", where="here", allowed="yes", hint="try")
    elif name == "crash":
        os.kill(os.getpid(), getattr(signal, args.get("signal", "SIGSEGV")))
    elif name == "leave":
        sys.exit(3)
    elif name == "wait":
        waiting = number
    elif name == "hang":
        time.sleep(60)
    elif name == "babble":
        sys.stdout.write("Loading weights: 100%\\n{half a line\\n\\xff\\n[1]\\n{}\\n")
        say(number, "result", fine=True)
    elif name == "flood":
        sys.stdout.write("x" * args["bytes"] + "\\n")
        sys.stdout.flush()
        say(number, "result", fine=True)
    elif name == "misspeak":
        say(number, "progress", done="one", total=2, unit="steps", what="")
    elif name == "children":
        if os.fork() == 0:
            time.sleep(60)
        say(number, "result", pid=os.getpid())
"""


@pytest.fixture
def fake(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "worker.py"
    path.write_text(FAKE.replace("PROTOCOL", str(PROTOCOL)))
    return (sys.executable, "-S", str(path))


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
async def client(fake: tuple[str, ...], events: list[Event]) -> AsyncIterator[WorkerClient]:
    opened = WorkerClient(events.append, fake)
    yield opened
    await opened.close()


def kinds(events: list[Event]) -> list[str]:
    return [str(type(event.body).__struct_config__.tag) for event in events]


def job(name: str, args: dict[str, Any]) -> ScoreJob:
    """Return a job that the fake worker takes for one of that name."""
    return ScoreJob(names=(name,), recipe=args)


def told(result: AnyResult) -> Any:
    """Return what the fake worker answers."""
    assert isinstance(result, ScoreResult)
    return result.scores[0]


async def until(true: Any) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


async def test_a_job_comes_back_with_its_result_and_its_events(client: WorkerClient, events: list[Event]) -> None:
    assert told(await client.run(job("echo", {"a": [1, "ü"]}), revision=4)) == {"said": {"a": [1, "ü"]}}
    assert kinds(events) == ["hello", "ack", "progress", "result"]
    assert client.hello is not None
    assert client.hello.protocol == PROTOCOL
    assert not client.busy


async def test_an_error_crosses_the_pipe_with_all_its_parts(client: WorkerClient) -> None:
    with pytest.raises(RecipeError) as caught:
        await client.run(job("refuse", {}))
    assert caught.value.to_dict() == {
        "kind": "RecipeError",
        "where": "here",
        "what": "no",
        "allowed": "yes",
        "hint": "try",
    }
    assert told(await client.run(job("echo", {}))) == {"said": {}}


async def test_a_crash_fails_the_job_and_the_next_one_gets_another_worker(
    client: WorkerClient, events: list[Event]
) -> None:
    with pytest.raises(WorkerError, match="was killed by SIGSEGV"):
        await client.run(job("crash", {}))
    assert kinds(events)[-1] == "error"
    assert told(await client.run(job("echo", {}))) == {"said": {}}
    assert kinds(events).count("hello") == 2


async def test_a_worker_killed_from_outside_hints_at_memory(client: WorkerClient) -> None:
    with pytest.raises(WorkerError, match="may have run out of memory"):
        await client.run(job("crash", {"signal": "SIGKILL"}))


async def test_every_job_under_way_fails_when_the_worker_ends(client: WorkerClient, events: list[Event]) -> None:
    first = await client.submit(job("wait", {}))
    second = await client.submit(job("leave", {}))
    waits = [asyncio.ensure_future(client.result(number)) for number in (first, second)]
    for wait in waits:
        with pytest.raises(WorkerError, match="ended with status 3"):
            await wait
    assert {event.id for event in events if isinstance(event.body, JobFailed)} == {first, second}


async def test_garbage_on_the_pipe_becomes_warnings(client: WorkerClient, events: list[Event]) -> None:
    assert told(await client.run(job("babble", {}))) == {"fine": True}
    texts = [event.body.text for event in events if isinstance(event.body, LogMessage)]
    assert texts[:2] == ["Loading weights: 100%", "{half a line"]
    assert len(texts) == 5


async def test_a_long_line_is_read_and_an_endless_one_fails_the_job(
    fake: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.client._LINE_LIMIT", 2**20)
    client = WorkerClient(lambda event: None, fake)
    assert told(await client.run(job("flood", {"bytes": 2**19}))) == {"fine": True}
    with pytest.raises(WorkerError, match="could not be taken in"):
        await asyncio.wait_for(client.run(job("flood", {"bytes": 2**22})), 10)
    assert told(await client.run(job("echo", {}))) == {"said": {}}
    await client.close()


async def test_a_listener_that_fails_does_not_leave_the_job_waiting(fake: tuple[str, ...]) -> None:
    def listen(event: Event) -> None:
        if isinstance(event.body, Progress):
            raise ValueError("no ears")

    client = WorkerClient(listen, fake)
    with pytest.raises(WorkerError, match="no ears"):
        await asyncio.wait_for(client.run(job("echo", {})), 10)
    await client.close()


async def test_a_cancel_ends_the_job_and_the_worker_lives_on(client: WorkerClient) -> None:
    number = await client.submit(job("wait", {}))
    wait = asyncio.ensure_future(client.result(number))
    assert client.busy == (number,)
    assert client.hello is not None
    pid = client.hello.pid
    await client.cancel()
    with pytest.raises(Cancelled):
        await wait
    assert told(await client.run(job("echo", {}))) == {"said": {}}
    assert client.hello.pid == pid


async def test_a_worker_that_hangs_is_killed_and_replaced(client: WorkerClient, events: list[Event]) -> None:
    number = await client.submit(job("hang", {}))
    wait = asyncio.ensure_future(client.result(number))
    await until(lambda: "ack" in kinds(events))
    await client.cancel()
    await asyncio.wait_for(client.kill(), 5)
    with pytest.raises(Cancelled):
        await wait
    assert not client.alive
    assert kinds(events)[-1] == "error"
    assert told(await client.run(job("echo", {}))) == {"said": {}}


async def test_a_kill_reaches_what_the_worker_started(client: WorkerClient) -> None:
    pid = told(await client.run(job("children", {})))["pid"]
    await client.kill()
    await until(lambda: not group_lives(pid))


def group_lives(pid: int) -> bool:
    states = [
        stat.read_text().rpartition(")")[2].split() for stat in Path("/proc").glob("[0-9]*/stat") if stat.exists()
    ]
    return any(int(state[2]) == pid and state[0] != "Z" for state in states)


async def test_a_worker_that_dies_before_its_greeting_is_told(fake: tuple[str, ...]) -> None:
    client = WorkerClient(lambda event: None, (*fake, "dies"))
    with pytest.raises(WorkerError, match="ended with status 7"):
        await client.run(job("echo", {}))
    await client.close()


async def test_killing_a_worker_that_never_greets_is_a_cancel(fake: tuple[str, ...]) -> None:
    client = WorkerClient(lambda event: None, (*fake, "silent"))
    start = asyncio.ensure_future(client.start())
    await until(lambda: client.alive)
    await asyncio.wait_for(client.kill(), 5)
    with pytest.raises(Cancelled):
        await start


async def test_a_worker_of_another_protocol_is_refused_each_time(fake: tuple[str, ...]) -> None:
    client = WorkerClient(lambda event: None, (*fake, "foreign"))
    for _ in range(2):
        with pytest.raises(WorkerError, match="speaks another protocol"):
            await client.run(job("echo", {}))
    await client.close()


async def test_a_worker_of_the_protocol_before_is_refused_by_its_own_greeting(tmp_path: Path) -> None:
    """An older surgeon on the machine at the other end of ssh says hello in its own form, and then waits."""
    old = tmp_path / "old.py"
    hello = '{"id": 0, "event": "hello", "body": {"protocol": 1, "version": "0.1.0", "pid": 7}, "revision": 0}'
    old.write_text(f"import time\nprint({hello!r}, flush=True)\ntime.sleep(60)\n")
    client = WorkerClient(lambda event: None, (sys.executable, str(old)))
    with pytest.raises(WorkerError, match=r"speaks another protocol \(surgeon 0\.1\.0\)"):
        await client.start()
    await client.close()


async def test_an_event_with_a_wrong_field_fails_the_job_and_names_the_field(client: WorkerClient) -> None:
    with pytest.raises(WorkerError, match=r"not understood: .*`\$\.body\.done`"):
        await client.run(job("misspeak", {}))
    assert told(await client.run(job("echo", {}))) == {"said": {}}


async def test_a_command_that_is_not_there_is_named() -> None:
    client = WorkerClient(lambda event: None, "no-such-worker --here")
    with pytest.raises(WorkerError, match="no-such-worker --here: cannot be started"):
        await client.start()
    await client.close()


async def test_two_jobs_at_once_start_one_worker(client: WorkerClient, events: list[Event]) -> None:
    results = await asyncio.gather(client.run(job("echo", {"a": 1})), client.run(job("echo", {"a": 2})))
    assert [told(result)["said"]["a"] for result in results] == [1, 2]
    assert kinds(events).count("hello") == 1


async def test_asking_for_a_job_that_is_over_is_refused(client: WorkerClient, events: list[Event]) -> None:
    number = await client.submit(job("echo", {}))
    await until(lambda: "result" in kinds(events))
    with pytest.raises(WorkerError, match="is over"):
        await client.result(number)


async def test_closing_twice_or_before_the_start_is_harmless(fake: tuple[str, ...]) -> None:
    client = WorkerClient(lambda event: None, fake)
    await client.close()
    await client.kill()
    await client.start()
    await client.close()
    await client.close()
    assert not client.alive


def test_run_job_goes_through_a_command_line(fake: tuple[str, ...]) -> None:
    heard: list[Event] = []
    assert told(run_job(job("echo", {"a": 1}), heard.append, shlex.join(fake))) == {"said": {"a": 1}}
    assert kinds(heard)[0] == "hello"


def test_ctrl_c_cancels_a_job_elsewhere(fake: tuple[str, ...]) -> None:
    def listen(event: Event) -> None:
        if isinstance(event.body, Acknowledged):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(Cancelled):
        run_job(job("wait", {}), listen, shlex.join(fake))


def test_a_second_ctrl_c_ends_a_worker_that_does_not_listen(fake: tuple[str, ...]) -> None:
    def listen(event: Event) -> None:
        if isinstance(event.body, Acknowledged):
            for seconds in (0.1, 0.3):
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    with pytest.raises(Cancelled):
        run_job(job("hang", {}), listen, shlex.join(fake))
    assert time.monotonic() - began < 10


def test_ctrl_c_while_a_worker_still_starts_is_not_lost(fake: tuple[str, ...]) -> None:
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Cancelled):
        run_job(job("echo", {}), lambda event: None, shlex.join((*fake, "silent")))


def test_run_job_here_performs_it_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(job: ScoreJob, emit: Any, cancelled: Any) -> ScoreResult:
        emit(LogMessage(text=job.names[0]))
        os.kill(os.getpid(), signal.SIGINT)
        return ScoreResult(scores=[{"cancelled": cancelled(), **job.recipe}])

    monkeypatch.setattr("surgeon.backend.jobs.dispatch.perform", perform)
    heard: list[Event] = []
    before = signal.getsignal(signal.SIGINT)
    assert told(run_job(job("any", {"a": 1}), heard.append)) == {"cancelled": True, "a": 1}
    assert kinds(heard) == ["log"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_a_job_here_that_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(*_: Any) -> ScoreResult:
        with contextlib.suppress(ValueError):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return ScoreResult(scores=[])

    monkeypatch.setattr("surgeon.backend.jobs.dispatch.perform", perform)
    with pytest.raises(Cancelled):
        run_job(job("any", {}), lambda event: None)


def test_the_local_worker_is_this_python() -> None:
    assert local_command() == (sys.executable, "-m", "surgeon", "worker")


async def test_a_worker_without_a_place_for_its_log_works_with_a_warning(
    fake: tuple[str, ...], events: list[Event], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A home that is full or read-only."""
    monkeypatch.setenv("SURGEON_STATE", str(blocked(tmp_path / "state")))
    client = WorkerClient(events.append, fake)
    assert told(await client.run(job("echo", {}))) == {"said": {}}
    (text,) = [event.body.text for event in events if isinstance(event.body, LogMessage)]
    assert text.startswith(f"the worker keeps no log: {tmp_path / 'state' / 'worker.log'} cannot be written")
    with pytest.raises(WorkerError, match="was killed by SIGSEGV") as caught:
        await client.run(job("crash", {}))
    assert "SURGEON_STATE" in caught.value.hint
    await client.close()


async def test_a_worker_that_a_vanished_file_has_killed_says_so(client: WorkerClient) -> None:
    """What is mapped into memory cannot be read any more once the file is shorter."""
    with pytest.raises(WorkerError, match="was killed by SIGBUS") as caught:
        await client.run(job("crash", {"signal": "SIGBUS"}))
    assert "became shorter" in caught.value.hint
