"""Where memory runs out, a batch is run in smaller parts: the mean is the same, and it is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from surgeon.backend.micro_batches import MicroBatches
from surgeon.backend.training import training_run
from surgeon.core.plan.learned_results import result_tensors
from surgeon.errors import LearningError
from tests.backend.training_recipes import LINES, learn_args, pupil, training
from tests.jobs import perform

Emit = Callable[[str, dict[str, Any]], None]


def learned(model: Path, emit: Emit = lambda *_: None, **fields: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    done = perform("learn", learn_args(model, training(**fields)), emit)
    ((address, report),) = done["reports"].items()
    return {name: load_file(one.shard)[name] for name, one in result_tensors(address).items()}, report


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Return what makes memory run out above so many sequences at once, in a forward pass or on the way back."""

    def limit(most: int, when: str) -> None:
        plain = training_run.logits_of

        def logits_of(model: Any, batch: Any) -> torch.Tensor:
            logits_BTV = plain(model, batch)
            if len(batch.tokens_BT) > most and when == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if len(batch.tokens_BT) > most and logits_BTV.requires_grad:
                logits_BTV.register_hook(fail)  # type: ignore[no-untyped-call]
            return logits_BTV

        def fail(_: torch.Tensor) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        for module in ("training_run", "trainer"):
            monkeypatch.setattr(f"surgeon.backend.training.{module}.logits_of", logits_of)

    return limit


def write_pairs(directory: Path) -> None:
    rows = [{"prompt": line, "chosen": f"yes, {line}", "rejected": f"no {at}"} for at, line in enumerate(LINES * 4)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize(
    "fields",
    [
        {"held_out": "20%", "eval_steps": 3},
        {"objective": "dpo", "data": "pairs.jsonl", "held_out": "20%", "max_length": 64},
    ],
)
def test_a_step_goes_on_in_smaller_parts_with_the_same_mean(
    fields: dict[str, Any], when: str, tmp_path: Path, short_of_memory: Callable[[int, str], None]
) -> None:
    """Losses, held-out losses and weights; it is told once for each halving, in the events and in the report."""
    model = pupil(tmp_path)
    write_pairs(tmp_path)
    expected, whole = learned(model, **fields)
    os.environ["SURGEON_CACHE"] += "-small"
    pairs = "objective" in fields
    short_of_memory(2 if pairs else 1, when)
    told: list[str] = []
    found, small = learned(model, lambda kind, body: told.append(str(body)) if kind == "log" else None, **fields)
    assert small["losses"] == pytest.approx(whole["losses"], abs=1e-5)
    for moment in ("before", "after"):
        assert small["held_out"][moment] == pytest.approx(whole["held_out"][moment], abs=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4, msg=name)
    assert [text.split(":")[0] for text in small["memory"]] == [
        f"memory ran out with {count} examples at once" for count in (4, 2)
    ]
    assert sum("memory ran out" in text for text in told) == 2
    assert "memory" not in whole


def test_where_one_example_does_not_fit_it_is_said_what_would(
    tmp_path: Path, short_of_memory: Callable[[int, str], None]
) -> None:
    short_of_memory(0, "forward")
    with pytest.raises(LearningError, match="not enough memory") as caught:
        learned(pupil(tmp_path))
    assert "gradient_checkpointing: true" in caught.value.allowed
    assert "gradient_accumulation_steps" not in caught.value.allowed


@given(count=st.integers(1, 40), size=st.integers(1, 40), fits=st.integers(1, 40))
def test_every_example_is_run_once_in_parts_that_fit(count: int, size: int, fits: int) -> None:
    told: list[str] = []
    micro = MicroBatches(told.append, may_halve=True)

    def run(parts: list[Any]) -> list[int]:
        if max(map(len, parts)) > fits:
            raise torch.OutOfMemoryError
        return [number for part in parts for number in part]

    assert micro.run(range(count), size, run, lambda: None) == list(range(count))
    first = min(count, size)
    assert len(told) == 0 if first <= fits else (micro.limit or 0) > fits // 2 - 1


def test_other_errors_are_none_of_memory() -> None:
    micro = MicroBatches(lambda _: None, may_halve=True)
    with pytest.raises(RuntimeError, match="shapes"):
        micro.run(range(4), 4, lambda _: (_ for _ in ()).throw(RuntimeError("shapes")), lambda: None)
