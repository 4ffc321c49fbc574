"""A run that is broken at any moment goes on from its last saved state and ends as one that was not."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from operator import contains
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import Cancelled, DataError
from tests.backend.training_recipes import learn_args, pupil, training
from tests.jobs import keep_silent, never, perform

STEPS = 8
FIELDS = {"steps": STEPS, "save_steps": 2, "held_out": "20%", "eval_steps": 3, "scheduler": "linear"}
DONE_ANEW = {
    "step 1": STEPS,
    "step 5": STEPS - 4,
    "state half written": STEPS - 2,
    "state not renamed": STEPS - 2,
    "last look": 0,
    "result half written": 0,
    "result not renamed": 0,
}
"""How many steps have to be made again after a kill at that moment, with a state saved after every second one."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What runs came to that were killed at those moments, and one that was not."""
    place = tmp_path_factory.mktemp("broken")
    args = learn_args(pupil(place), training(**FIELDS), device="cpu")
    words = [str(place / "caches"), json.dumps(args), "never", *DONE_ANEW]
    command = [sys.executable, "-m", "tests.backend.killed_runs", *words]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("moment", DONE_ANEW)
def test_a_killed_run_ends_with_the_same_weights(broken: dict[str, Any], moment: str) -> None:
    """Bit for bit, with the same losses; nothing is left beside the result, and only what was lost is done again."""
    unbroken, mended = broken["never"], broken[moment]
    assert mended["statuses"] == [-signal.SIGKILL, 0]
    assert mended["weights"] == unbroken["weights"]
    assert mended["losses"] == unbroken["losses"]
    assert mended["held_out"] == unbroken["held_out"]
    assert mended["steps"] == DONE_ANEW[moment]
    assert mended["kept"] == unbroken["kept"]
    assert len(mended["kept"]) == 1


@pytest.mark.parametrize("moment", DONE_ANEW)
def test_what_a_kill_leaves_is_no_result(broken: dict[str, Any], moment: str) -> None:
    """No directory of a result has its name before all of it is there."""
    directories = {name.partition("/")[0] for name in broken[moment]["left"]}
    assert directories
    assert all("." in name for name in directories)


def test_a_cancelled_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that was under way counts; steps done before and after the cancel add up to all of them."""
    args = learn_args(pupil(tmp_path), training(**{**FIELDS, "save_steps": 50}), device="cpu")
    losses = []
    for cache, stops in (("whole", []), ("parts", [3, 5])):
        monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / cache))
        seen: list[int] = []
        for stop in stops:
            with pytest.raises(Cancelled):
                perform("learn", args, _noting(seen), partial(contains, seen, stop))
            assert seen[-1] == stop
        (report,) = perform("learn", args, _noting(seen), never)["reports"].values()
        losses.append(report["losses"])
        assert list(dict.fromkeys(seen)) == list(range(1, STEPS + 1))
        assert len(list((tmp_path / cache / "learned").iterdir())) == 1
    assert losses[0] == losses[1]
    files = [next((tmp_path / cache).glob("learned/*/learned.safetensors")) for cache in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_look_at_the_held_out_loss_that_was_cancelled_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve has a point wherever one was asked for, as if nothing had been broken."""
    args = learn_args(pupil(tmp_path), training(**FIELDS), device="cpu")
    curves = []
    for cache, stops in (("whole", False), ("parts", True)):
        monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / cache))
        told: list[tuple[str, int]] = []

        def note(kind: str, body: dict[str, Any], told: list[tuple[str, int]] = told) -> None:
            if kind == "progress":
                told.append((body["what"], body["done"]))

        def stop(told: list[tuple[str, int]] = told) -> bool:
            return ("training", 3) in told and told[-1][0] == "held-out loss"

        if stops:
            with pytest.raises(Cancelled):
                perform("learn", args, note, stop)
        (report,) = perform("learn", args, keep_silent, never)["reports"].values()
        curves.append(report["held_out"]["steps"])
    assert [number for number, _ in curves[1]] == [3, 6]
    assert curves[0] == curves[1]


def _noting(seen: list[int]) -> Any:
    def note(kind: str, body: dict[str, Any]) -> None:
        if kind == "progress" and body["what"] == "training":
            seen.append(body["done"])

    return note


def test_a_state_that_cannot_be_read_is_no_state(tmp_path: Path) -> None:
    """A disk that lost half of it costs time, not the run."""
    args = learn_args(pupil(tmp_path), training(steps=3, save_steps=1), device="cpu")
    seen: list[int] = []
    with pytest.raises(Cancelled):
        perform("learn", args, _noting(seen), lambda: 2 in seen)
    (state,) = Path(os.environ["SURGEON_CACHE"]).glob("learned/*.state/state.pt")
    state.write_bytes(state.read_bytes()[:200])
    perform("learn", args, _noting(seen), never)
    assert seen == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("left", ["old", "young", "beside its result", "in use", "result, half written"])
def test_what_broken_runs_left_is_removed_in_time(tmp_path: Path, left: str) -> None:
    """When another training begins, with a line that says so; what is young or locked stays."""
    args = learn_args(pupil(tmp_path), training(steps=2), device="cpu")
    results = Path(os.environ["SURGEON_CACHE"]) / "learned"
    place = results / ("0123.partial" if left.startswith("result") else "0123.state")
    place.mkdir(parents=True)
    (place / "state.pt").write_bytes(bytes(3_000_000))
    if left == "beside its result":
        (results / "0123").mkdir()
    elif left != "young":
        long_ago = time.time() - 31 * 24 * 3600
        for path in (place / "state.pt", place):
            os.utime(path, (long_ago, long_ago))
    told: list[str] = []
    handle = os.open(place, os.O_RDONLY)
    if left == "in use":
        fcntl.flock(handle, fcntl.LOCK_EX)
    perform("learn", args, lambda kind, body: told.append(str(body.get("text"))), never)
    os.close(handle)
    stays = left in ("young", "in use")
    assert place.exists() == stays
    assert any(place.name in text and "3.0 MB" in text for text in told) != stays


def test_a_run_that_fails_before_it_begins_leaves_nothing(tmp_path: Path) -> None:
    """No empty directory for a state that never was."""
    args = learn_args(pupil(tmp_path), training(objective="sft"), device="cpu")
    with pytest.raises(DataError):
        perform("learn", args, keep_silent, never)
    assert not list((Path(os.environ["SURGEON_CACHE"]) / "learned").iterdir())


def test_a_state_is_for_any_steps_that_follow(tmp_path: Path) -> None:
    """What the recipe does afterwards may change between the kill and the next try."""
    model = pupil(tmp_path)
    seen: list[int] = []
    with pytest.raises(Cancelled):
        perform("learn", learn_args(model, training(), {"prune": {"layers": 0}}), _noting(seen), lambda: 4 in seen)
    perform("learn", learn_args(model, training(), {"prune": {"layers": 1}}), keep_silent, never)
    perform("learn", learn_args(model, training()), _noting(seen), never)
    assert seen == [1, 2, 3, 4]
