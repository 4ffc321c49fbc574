"""A worker of two processes, as `accelerate launch` starts it, comes to what one process comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgeon.client import WorkerClient
from surgeon.core.events import Event, Progress
from surgeon.core.job_results import LearnResult, ScoreResult
from surgeon.errors import Cancelled, LearningError
from tests.backend.training_recipes import LINES, as_dtype, learn_args, pupil, training
from tests.jobs import job_of, keep_silent, never, perform

pytestmark = pytest.mark.slow
LAUNCH = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerClient]:
    """A worker of two processes on the CPU, that keeps what it learns elsewhere."""
    monkeypatch.setenv("SURGEON_CACHE", os.environ["SURGEON_CACHE"] + "-two")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield WorkerClient(heard.append, [sys.executable, "-m", *LAUNCH, "-m", "surgeon", "worker"])
    heard.clear()


heard: list[Event] = []


def results_of(cache: str, address: str) -> Mapping[str, torch.Tensor]:
    return load_file(Path(cache) / "learned" / address / "learned.safetensors")


def write_pairs(directory: Path) -> None:
    """Write prompts with a good and a bad answer, of many lengths."""
    rows = [{"prompt": line, "chosen": f"yes, {line}" * (1 + at % 2), "rejected": f"no {at}"} for at, line in
            enumerate(LINES * 4)]  # fmt: skip
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


CASES: Mapping[str, Mapping[str, Any]] = {
    "shares alike": {"held_out": "20%", "eval_steps": 2},
    "one share larger": {"batch_size": 3, "gradient_accumulation_steps": 2},
    "one share empty": {"batch_size": 1, "steps": 3},
    "with a reference": {"objective": "dpo", "data": "pairs.jsonl", "held_out": "20%", "max_length": 64, "steps": 4},
}


async def test_two_processes_learn_what_one_does(tmp_path: Path, client: WorkerClient) -> None:
    """Weights, losses, held-out losses and tokens, whatever the shares; only rounding differs."""
    model = pupil(tmp_path)
    write_pairs(tmp_path)
    two, one = os.environ["SURGEON_CACHE"], str(tmp_path / "one")
    for name, fields in CASES.items():
        args = learn_args(model, training(**fields), device="cpu")
        result = await client.run(job_of("learn", args))
        os.environ["SURGEON_CACHE"] = one
        alone = perform("learn", args, keep_silent, never)
        os.environ["SURGEON_CACHE"] = two
        assert isinstance(result, LearnResult)
        ((address, report),) = result.reports.items()
        expected = alone["reports"][address]
        assert report["losses"] == pytest.approx(expected["losses"], abs=1e-4), name
        for when in ("before", "after"):
            assert report["held_out"][when] == pytest.approx(expected["held_out"][when], abs=1e-4), name
        assert report["tokens"] == expected["tokens"]
        found, wanted = results_of(two, address), results_of(one, address)
        assert found.keys() == wanted.keys()
        for tensor in wanted:
            torch.testing.assert_close(found[tensor], wanted[tensor], atol=1e-4, rtol=1e-3, msg=f"{name}: {tensor}")
    await client.close()


async def test_two_processes_learn_on_a_bf16_base_what_one_does(tmp_path: Path, client: WorkerClient) -> None:
    """Frozen weights are held as they are stored in each, and are not sent."""
    model = pupil(tmp_path)
    as_dtype(model, torch.bfloat16)
    args = learn_args(model, {"masked_lora": {"layers": "all", "rank": 2}}, training(), device="cpu")
    result = await client.run(job_of("learn", args))
    assert isinstance(result, LearnResult)
    ((address, report),) = result.reports.items()
    os.environ["SURGEON_CACHE"], two = str(tmp_path / "one"), os.environ["SURGEON_CACHE"]
    alone = perform("learn", args, keep_silent, never)
    os.environ["SURGEON_CACHE"] = two
    assert report["losses"] == pytest.approx(alone["reports"][address]["losses"], abs=1e-4)
    await client.close()


async def test_they_stop_and_fail_together_and_serve_on(tmp_path: Path, client: WorkerClient) -> None:
    """A cancel ends the step in both and keeps its state; a loss that is not finite is told once; other jobs work."""
    model = pupil(tmp_path)
    await client.start()
    long = learn_args(model, training(steps=4000, learning_rate=1e-4), device="cpu")
    number = await client.submit(job_of("learn", long))
    while not any(event.id == number and isinstance(event.body, Progress) for event in heard):
        await _a_moment()
    await client.cancel()
    with pytest.raises(Cancelled):
        await client.result(number)
    (state,) = Path(os.environ["SURGEON_CACHE"]).glob("learned/*.state/state.pt")
    assert 0 < torch.load(state, weights_only=True)["done"] < 4000
    with pytest.raises(LearningError, match="the loss is"):
        await client.run(
            job_of("learn", learn_args(model, training(learning_rate=1e30, scheduler="constant"), device="cpu"))
        )
    scores = await client.run(job_of("score", {**learn_args(model), "names": ["weight_norm"]}))
    assert isinstance(scores, ScoreResult)
    assert scores.scores
    again = await client.run(job_of("learn", learn_args(model, training(), device="cpu")))
    assert isinstance(again, LearnResult)
    assert again.reports
    await client.close()


async def _a_moment() -> None:
    import asyncio

    await asyncio.sleep(0.05)


def test_a_command_may_be_launched_as_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first does everything else and speaks; both end."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = pupil(tmp_path)
    words = ["train", str(model), "--objective", "lm", "--data", "text.jsonl", "--steps", "2", "--max-length", "24",
             "--device", "cpu", "--out", "out"]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", *LAUNCH, "-m", "surgeon", *words],
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(tmp_path / "out")]
    assert ended.stderr.count("training: step 1 of 2") == 1
