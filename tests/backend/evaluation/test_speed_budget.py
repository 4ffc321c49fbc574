"""A budget of speed: as many layers go as a measurement asks for, and the replay asks for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.backend.evaluation import speed_budget
from surgeon.core.recipe.evaluation_metrics import RawResults
from surgeon.errors import SelectionError
from tests.backend.tiny_models import LAYERS, save_tiny, write_tokenizer
from tests.export.replaying import run


def speed_by_layers(
    model: Any, as_base: Any, prompt: list[int], new: int, rounds: int, *_: Any, **__: Any
) -> RawResults:
    """One second for each layer, and two whatever there is; each round of a slower machine."""
    own = len(model.model.layers) + 2.0
    with as_base() as base:
        whole = len(base.model.layers) + 2.0
    rows = [[1.0, own * slow, 1.0, whole * slow] for slow in range(1, rounds + 1)]
    return RawResults(values=rows, sizes=[[len(prompt), new - 1]] * rounds, measured_on="a clock")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(speed_budget, "speed", speed_by_layers)
    model = save_tiny("llama", tmp_path / "model")
    write_tokenizer(model)
    return model


def pruned(base: Path, out: str, target: Any, *before: Any) -> tuple[list[int], list[str]]:
    told: list[str] = []
    step = {"prune": {"until": {"tokens_per_second": target}, "by": "weight_norm"}}
    found = run(
        base,
        base.parent / out,
        *before,
        step,
        device="cpu",
        emit=lambda _, event: told.append(str(event.get("text", ""))),
    )
    return found["recipe"]["steps"][-1]["resolved"]["layers"], told


def test_as_few_layers_go_as_the_measurement_asks_for(base: Path) -> None:
    """8 / 1.3 = 6.15 seconds: four layers and two seconds are fast enough, five are not."""
    gone, told = pruned(base, "fast", "1.3x")
    assert len(gone) == LAYERS - 4
    assert any("1.33x ± 0 of at least 1.3x without 2 layers, on a clock" in text for text in told)


def test_it_is_a_multiple_of_the_model_at_that_step(base: Path) -> None:
    """Five layers and two seconds; 7 / 1.3 = 5.4: three layers."""
    gone, _ = pruned(base, "later", "1.3x", {"prune": {"layers": [0]}})
    assert len(gone) == 2


def test_what_is_fast_enough_or_never_will_be_is_refused(base: Path) -> None:
    with pytest.raises(SelectionError, match="cannot be met"):
        pruned(base, "never", "9x")
    with pytest.raises(SelectionError, match="meets it as it is"):
        pruned(base, "already", 0.5)


def test_the_replay_measures_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, _ = pruned(base, "first", "1.3x")
    monkeypatch.setattr(speed_budget, "speed", None)
    step: Any = {"prune": {"until": {"tokens_per_second": "1.3x"}, "by": "weight_norm"}, "resolved": {"layers": gone}}
    again = run(base, base.parent / "again", step, device="cpu")
    assert again["recipe"]["steps"][0]["resolved"]["layers"] == gone
