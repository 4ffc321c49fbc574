"""The worker, as a real process on a real pipe."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from surgeon import __version__
from surgeon.backend import worker as worker_process
from surgeon.core.events import Progress
from surgeon.core.jobs import PROTOCOL
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.backend.worker_process import SECONDS, PlayedWorker, Worker
from tests.export.handmade_shards import write_llama
from tests.export.replaying import PRUNE, job_args, names_in


@pytest.fixture
def worker(_own_directories: Path) -> Iterator[Worker]:
    """A worker as the client starts it."""
    one = Worker(home=_own_directories)
    yield one
    one.stop()


@pytest.fixture
def scored(tmp_path: Path) -> dict[str, Any]:
    """The arguments of a score job on a tiny model."""
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    return score_args(base)


def score_args(base: Path, **more: Any) -> dict[str, Any]:
    """Return the arguments of a score job."""
    recipe = {"version": 1, "base": {"model": str(base)}, "steps": []}
    return {"recipe": recipe, "root": str(base), "names": ["block_influence"], "sequences": 4, "length": 16, **more}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker with jobs made for these tests, and nothing imported beforehand."""
    monkeypatch.setenv("COLD", "1")
    one = PlayedWorker()
    yield one
    one.stop()


def test_it_greets_before_it_loads_torch() -> None:
    """The front end learns at once that it is there; the seconds of torch pass unseen."""
    one = Worker(
        "import sys, surgeon.backend.worker as w\n"
        "w._warm_up = lambda: print('torch' in sys.modules, file=sys.stderr)\n"
        "w.main()"
    )
    hello = one.wait(lambda event: event["event"] == "hello")
    assert hello["body"] == {"protocol": PROTOCOL, "version": __version__, "pid": one.process.pid}
    assert hello["id"] == 0
    one.send("verify", directory="/nowhere")
    one.end_of(1)  # served after the warm-up, by the same thread
    assert one.close() == 0
    assert b"False\n" in one.log


def test_it_has_torch_and_transformers_before_the_first_job() -> None:
    """So that the first score starts at once; and what is loaded is out of the garbage collector's sight."""
    code = (
        "import gc, sys, surgeon.backend.worker as w\n"
        "wanted = ('torch', 'transformers.models.auto.modeling_auto')\n"
        "there = lambda: [name in sys.modules for name in wanted]\n"
        "from surgeon.core.job_results import ScoreResult\n"
        "w.perform = lambda *_: ScoreResult(scores=[{'there': there(), 'frozen': gc.get_freeze_count()}])\n"
        "w.main()"
    )
    one = Worker(code)
    one.send("score", names=["look"], recipe={})
    body = one.end_of(1)["body"]["scores"][0]
    assert body["there"] == [True, True]
    assert body["frozen"] > 100_000
    assert one.close() == 0


def test_it_scores_and_exports_over_the_pipe(worker: Worker, scored: dict[str, Any], tmp_path: Path) -> None:
    """Every event bears the job's number and the revision it was asked at; a job ends with one result."""
    worker.send("score", 7, revision=42, **scored)
    result = worker.end_of(7)
    assert result["event"] == "result", result
    assert len(result["body"]["scores"][0]["values"]) == 6
    worker.send("run", 8, revision=43, **job_args(tmp_path / "base", tmp_path / "out", [PRUNE]))
    assert worker.end_of(8)["event"] == "result"
    assert (tmp_path / "out" / "model.safetensors").is_file()
    for number, revision in ((7, 42), (8, 43)):
        own = [event for event in worker.events if event["id"] == number]
        assert {event["revision"] for event in own} == {revision}
        assert own[0]["event"] == "ack"
        assert [event["event"] for event in own if event["event"] in ("result", "error")] == ["result"]
    assert [event["body"]["layer"] for event in worker.events if event["event"] == "scored"] == list("012345")
    assert worker.close() == 0


def test_nothing_that_a_library_prints_or_reads_reaches_the_channel(played: Worker) -> None:
    """Python's and C's stdout, children, stdin: the log gets the one, an empty file is the other."""
    played.send("speak", 1)
    assert played.end_of(1)["body"] == {"read": "", "fd": ""}
    played.send("next", 2)
    assert played.end_of(2)["event"] == "result"
    assert played.close() == 0
    for line in played.lines:
        assert set(json.loads(line)) >= {"id", "body"}
    assert {b"print\n", b"err\n", b"system\n", b"raw\n"} <= set(played.log)


@pytest.mark.parametrize(
    "raw", [b"garbage\n", b"\n", b"{}\n", b"[1]\n", b'{"id": "x", "job": "a"}\n', b'{"id": 1, "job": "a", "more": 1}\n',
            b"\xff\xfe\n", b'{"a":' * 10_000 + b"\n"],
)  # fmt: skip
def test_a_line_that_is_no_job_is_answered_with_an_error(raw: bytes, played: Worker) -> None:
    """And the next job works."""
    played.write(raw)
    fault = played.wait(lambda event: event["event"] == "error")
    assert fault["id"] == 0
    assert fault["body"]["kind"] == "WorkerError"
    assert fault["body"]["allowed"]
    played.send("next", 2)
    assert played.end_of(2)["event"] == "result"


def test_an_unknown_job_is_told_which_there_are(worker: Worker) -> None:
    """Then a known one with broken arguments, and both are errors of the job that asked."""
    worker.send("dance", 1)
    body = worker.end_of(1)["body"]
    assert "dance" in body["what"]
    assert "score" in body["allowed"]
    worker.send("score", 2)
    assert worker.end_of(2)["event"] == "error"


def test_a_job_after_an_error_works(worker: Worker, scored: dict[str, Any]) -> None:
    """A missing model, then a sound one."""
    worker.send("score", 1, **{**scored, "recipe": {"version": 1, "base": {"model": "/nowhere"}, "steps": []}})
    fault = worker.end_of(1)
    assert (fault["event"], fault["body"]["kind"]) == ("error", "CheckpointError")
    worker.send("score", 2, **scored)
    assert worker.end_of(2)["event"] == "result"


@pytest.mark.parametrize("job", ["leave", "nan"])
def test_whatever_a_job_raises_does_not_end_the_worker(job: str, played: Worker) -> None:
    """Even SystemExit, or a result that is no JSON."""
    played.send(job, 1)
    fault = played.end_of(1)
    assert fault["body"]["kind"] == "WorkerError"
    assert fault["body"]["where"] == "score"
    played.send("next", 2)
    assert played.end_of(2)["event"] == "result"


def test_a_cancel_stops_scoring_between_batches(worker: Worker, scored: dict[str, Any]) -> None:
    """Long before the end, which a thousand sequences would put minutes away; the next job works."""
    worker.send("score", 1, **{**scored, "sequences": 4000, "batch_tokens": 16})
    worker.wait(lambda event: event["event"] == "log")
    worker.send("cancel", 0)
    assert worker.end_of(1)["body"]["kind"] == "Cancelled"
    worker.send("score", 2, **scored)
    assert worker.end_of(2)["event"] == "result"


def test_a_cancel_reaches_jobs_that_have_not_begun_and_no_later_ones(played: Worker) -> None:
    """A person who cancels while torch is still being loaded means the job that waits."""
    played.send("wait", 1)
    played.send("wait", 2)
    played.wait(lambda event: event["event"] == "log")
    played.send("cancel", 0)
    played.send("next", 3)
    assert played.end_of(1)["body"]["kind"] == "Cancelled"
    assert played.end_of(2)["body"]["kind"] == "Cancelled"
    assert played.end_of(3)["event"] == "result"


def test_progress_comes_at_most_ten_times_a_second_and_ends_at_the_total(played: Worker) -> None:
    """A thousand steps in one second and a half."""
    played.send("count", 1, n=1000, pause=0.0015)
    played.end_of(1)
    told = [event for event in played.events if event["event"] == "progress"]
    assert told[-1]["body"]["done"] == 1000
    seconds = told[-1]["at"] - told[0]["at"]
    assert len(told) <= 10 * seconds + 3
    assert len(told) > 3


def test_what_is_soon_over_does_not_keep_other_progress_from_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses every few steps, each complete, and the training that they interrupt: 128 steps a second."""
    now, out = [0], io.BytesIO()
    monkeypatch.setattr(worker_process, "time", SimpleNamespace(monotonic=lambda: now[0] / 128))
    channel = worker_process._Channel(out, lambda: None)
    for step in range(100):
        now[0] = step
        channel.send(Progress(done=16, total=16, unit="examples", what="held-out loss"))
        channel.send(Progress(done=step, total=1000, unit="steps", what="training", figures={"loss": 1.0}))
    told = [json.loads(line)["body"] for line in out.getvalue().splitlines()]
    assert [body["done"] for body in told if body["what"] == "training"] == list(
        range(0, 100, 13)
    )  # the first that is 0.1 s later


def test_a_job_tells_about_once_a_second_what_it_uses(played: Worker) -> None:
    """Resident bytes, bytes on the device, threads; nothing while nobody works."""
    time.sleep(1.3)
    played.send("count", 5, n=250, pause=0.01)
    played.end_of(5)
    stats = [event for event in played.events if event["event"] == "stat"]
    seconds = 250 * 0.01
    assert 1 <= len(stats) <= seconds + 2
    for event in stats:
        assert event["id"] == 5
        assert set(event["body"]) == {"rss_bytes", "device_bytes", "threads"}
        assert event["body"]["rss_bytes"] > 10_000_000


def test_the_end_of_stdin_ends_the_process_at_rest_and_at_work(played: Worker, tmp_path: Path) -> None:
    """A job under way may clean up first."""
    left = tmp_path / "left"
    played.send("wait", 1, left=str(left))
    played.wait(lambda event: event["event"] == "log")
    assert played.close() == 0
    assert left.read_text() == "clean"


def test_a_job_that_does_not_listen_cannot_keep_the_process(played: Worker) -> None:
    """Whoever started it has gone."""
    played.send("wait", 1, stubborn=True)
    played.wait(lambda event: event["event"] == "log")
    assert played.close() == 0


def test_the_end_of_stdin_during_an_export_leaves_nothing(tmp_path: Path) -> None:
    """As when the terminal is closed."""
    base = write_llama(tmp_path / "base", layers=6)
    slow = (
        "import time, surgeon.export.shard_writer as s, surgeon.backend.worker as w\n"
        "s._PIECE = 16\nreal = s._copy\n"
        "def copy(*a):\n    time.sleep(0.05); real(*a)\n"
        "s._merge_ranges.__globals__['_copy'] = copy\nw._warm_up = lambda: None\nw.main()"
    )
    one = Worker(slow)
    one.send("run", 1, **job_args(base, tmp_path / "out", [PRUNE]))
    one.wait(lambda event: event["event"] == "progress")
    assert one.close() == 0
    assert names_in(tmp_path) == ["base"]


def test_when_its_owner_is_killed_no_worker_stays(tmp_path: Path) -> None:
    """SIGKILL of the front end closes the pipe, and that is all it takes."""
    owner = (
        "import subprocess, sys, time\n"
        "w = subprocess.Popen([sys.executable, '-m', 'surgeon', 'worker'], stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)\n"
        "w.stdout.readline(); print(w.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = psutil.Process(int(process.stdout.readline()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    gone, alive = psutil.wait_procs([worker], SECONDS)
    assert (len(gone), alive) == (1, [])
