"""Speed beside the base: what is timed, in which order, what memory is counted, and that its machine is named."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.backend.evaluation import speed as measuring
from surgeon.core.recipe.evaluation_metrics import Measure, RawResults, figures_of
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import DataError, GateError, RecipeError
from tests.backend.tiny_models import make_tiny, save_tiny, write_tokenizer
from tests.export.replaying import run

SPEED = {"evaluate": {"metric": "speed", "max_length": 24, "max_new_tokens": 5, "rounds": 3}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = save_tiny("llama", tmp_path / "model")
    write_tokenizer(model)
    return model


def evaluated(base: Path, *steps: Any, **more: Any) -> list[dict[str, Any]]:
    found = run(base, base.parent / "out", *steps, root=str(base.parent), device="cpu", **more)
    evaluations: list[dict[str, Any]] = found["evaluations"]
    return evaluations


def test_speedups_are_told_round_by_round() -> None:
    """A machine that is three times slower in one round changes both times of it, and no speedup."""
    rows = [[0.1, 0.2, 0.2, 0.3], [0.3, 0.6, 0.6, 0.9]]
    raw = RawResults(values=rows, sizes=[[100, 10]] * 2, peaks={"peak_memory": 7})
    found = figures_of(Measure(kind="speed"), raw, None)
    assert found["prefill_speedup"].value == pytest.approx(2.0)
    assert found["prefill_speedup"].error == pytest.approx(0.0, abs=1e-12)
    assert found["decode_speedup"].value == pytest.approx(1.5)
    assert found["prefill_tokens_per_second"].value == pytest.approx((100 / 0.1 + 100 / 0.3) / 2)
    assert found["decode_tokens_per_second"].value == pytest.approx((10 / 0.2 + 10 / 0.6) / 2)
    assert found["base_decode_tokens_per_second"].value == pytest.approx((10 / 0.3 + 10 / 0.9) / 2)
    assert found["peak_memory"].value == 7


def test_it_is_measured_beside_the_base_and_says_on_what(base: Path) -> None:
    (one,) = evaluated(base, {"prune": {"layers": "1-4"}}, SPEED)
    figures = one["figures"]
    assert figures["decode_speedup"]["value"] > 1.2  # two layers of six
    assert figures["peak_memory"]["value"] < figures["base_peak_memory"]["value"]
    assert one["examples"] == 3
    assert "one sequence, 24 + 5 tokens, 3 rounds" in one["measured_on"]
    assert "float32" in one["measured_on"]
    card = (base.parent / "out" / "README.md").read_text()
    assert one["measured_on"] in card


def test_the_two_take_turns_and_neither_is_always_second(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    state = ["edited"]
    model = make_tiny("llama")

    @contextmanager
    def as_base() -> Any:
        state.append("base")
        yield model
        state.pop()

    def seconds(*_: Any) -> tuple[float, float]:
        order.append(state[-1])
        return 1.0, 1.0

    monkeypatch.setattr(measuring, "_seconds", seconds)
    measuring.speed(model, as_base, [5] * 8, 3, 4, lambda _: None)
    assert order == ["edited", "base", "base", "edited"] * 2


def test_memory_counts_the_weights_once_and_what_lives_at_a_time() -> None:
    with measuring._LiveTensors() as live:
        kept = torch.zeros(1000)
        for _ in range(5):
            gone = torch.zeros(500) + 1  # two of 500 at a time
            del gone
        view = kept.view(10, 100)
        view += 1
    assert live.peak == 4 * (1000 + 2 * 500)
    assert live.now == 4 * 1000


def test_memory_is_that_of_the_weights_and_a_little(base: Path) -> None:
    (one,) = evaluated(base, SPEED)
    weights = sum(parameter.nbytes for parameter in make_tiny("llama").parameters())
    figures = one["figures"]
    assert weights < figures["peak_memory"]["value"] < weights + 2**20
    assert figures["peak_memory"] == figures["base_peak_memory"]


def test_gates_take_numbers(base: Path) -> None:
    bound = {"max_length": 16, "max_new_tokens": 4}
    with pytest.raises(GateError, match="decode_speedup is"):
        evaluated(base, {"require": {"decode_speedup": {"at_least": 1000, **bound}}})
    fits = evaluated(base, {"require": {"peak_memory": {"at_most": 1e9, **bound}}})
    assert fits[0]["bounds"] == {"peak_memory": "at most 1e+09"}
    step = step_of("require", {"decode_tokens_per_second": {"at_least": "1.2x"}}, "here")
    with pytest.raises(RecipeError, match="decode_speedup are multiples"):
        step.operation.apply(None, {})  # type: ignore[arg-type]


def test_one_new_token_has_no_speed_and_the_model_must_know_the_positions(tmp_path: Path) -> None:
    step = step_of("evaluate", {"metric": "speed", "max_new_tokens": 1}, "here")
    with pytest.raises(RecipeError, match="too few"):
        step.operation.apply(None, {})  # type: ignore[arg-type]
    model = save_tiny("gpt2", tmp_path / "gpt2")
    write_tokenizer(model)
    with pytest.raises(DataError, match="128 positions"):
        evaluated(model, {"evaluate": {"metric": "speed", "max_length": 120, "max_new_tokens": 20}})


def test_figures_are_plain_json(base: Path) -> None:
    (one,) = evaluated(base, SPEED)
    assert json.loads(json.dumps(one)) == one
