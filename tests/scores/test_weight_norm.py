"""Weight norms against numpy in float64, read by safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.matrices import StoredMatrix
from surgeon.backend.scoring.context import Settings
from surgeon.backend.scoring.score_runner import measure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.core.scoring.score import Score
from surgeon.errors import Cancelled, ScoreError
from surgeon.scores.weight_norm import WeightNorm
from tests.backend.tiny_models import FAMILIES, LAYERS, save_tiny
from tests.jobs import job_context, keep_silent, never


def open_draft(base: Path, *steps: Any) -> Draft:
    """Return the draft of a recipe."""
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": list(steps)})
    return fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps)


def norms(base: Path, *steps: Any, emit: Any = keep_silent, cancelled: Any = never) -> Score:
    """Measure weight norms after a recipe."""
    (score,) = measure(open_draft(base, *steps), ["weight_norm"], Settings(base), job_context(emit, cancelled))
    return score


def stored(base: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read every tensor as float64."""
    found = {}
    with safe_open(base / "model.safetensors", "pt") as reader:
        for name in reader.keys():  # noqa: SIM118 - it is no mapping
            found[name] = reader.get_tensor(name).double().numpy()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_is_that_of_numpy_in_float64(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of each matrix, fused ones put together again, and of all of a layer as one vector; norms and biases not."""
    base = save_tiny(family, tmp_path / "base", dtype)
    score = norms(base)
    weights = stored(base)
    prefix = open_draft(base).structure.stack().prefix
    assert list(score.values) == [str(index) for index in range(LAYERS)]
    for index in range(LAYERS):
        start = f"{prefix}.{index}."
        here = {
            name.removeprefix(start): value
            for name, value in weights.items()
            if name.startswith(start) and value.ndim > 1
        }
        parts: dict[str, float] = {}
        for name, value in score.matrices[str(index)].items():
            tensor = name.partition("[")[0]
            parts[tensor] = np.hypot(parts.get(tensor, 0.0), value)
        assert parts == pytest.approx({name: np.linalg.norm(value) for name, value in here.items()})
        together = np.sqrt(sum((value**2).sum() for value in here.values()))
        assert score.values[str(index)] == pytest.approx(together, rel=1e-12)
    assert score.errors == {}


def test_after_a_recipe_each_layer_has_the_norm_of_what_would_be_written(tmp_path: Path) -> None:
    """Means are calculated, silenced outputs count nothing, duplicates count again."""
    base = save_tiny("llama", tmp_path / "base")
    steps = [
        {"prune": {"layers": [0]}},
        {"expand": {"after": [1], "init": "mean"}},
        {"expand": {"after": [0], "init": "duplicate"}},
    ]
    score = norms(base, *steps)
    assert list(score.values) == ["1", "1+1", "2", "2+1", "3", "4", "5"]
    assert score.values["1+1"] == score.values["1"]
    weights = stored(base)
    mean = (weights["model.layers.2.mlp.up_proj.weight"] + weights["model.layers.3.mlp.up_proj.weight"]) / 2
    assert score.matrices["2+1"]["mlp.up_proj.weight"] == pytest.approx(np.linalg.norm(mean), rel=1e-6)
    assert score.matrices["2+1"]["mlp.down_proj.weight"] == 0
    assert score.matrices["2+1"]["self_attn.o_proj.weight"] == 0


def test_rows_arrive_layer_by_layer_as_they_are_measured(tmp_path: Path) -> None:
    """And what arrives is what the result says."""
    base = save_tiny("llama", tmp_path / "base")
    seen: list[tuple[str, float]] = []
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(len(seen))
        return False

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "scored":
            seen.append((body["layer"], body["value"]))
            assert body["score"] == "weight_norm"
            assert body["matrices"]

    score = norms(base, emit=emit, cancelled=cancelled)
    assert dict(seen) == score.values
    assert sorted(set(asked)) == list(range(LAYERS))  # layer n is only read once n rows have arrived


def test_a_cancel_is_heeded_between_two_tensors(tmp_path: Path) -> None:
    """Not only between layers."""
    base = save_tiny("llama", tmp_path / "base")
    asked = iter([False, False, True])
    rows: list[str] = []
    with pytest.raises(Cancelled):
        norms(base, emit=lambda kind, body: rows.append(kind), cancelled=lambda: next(asked))
    assert "scored" not in rows


def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    """A ranking of nan means nothing."""
    from safetensors.torch import load_file, save_file

    base = save_tiny("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.4.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ScoreError, match="layer 4") as caught:
        norms(base)
    assert caught.value.hint


def test_a_norm_of_bfloat16_is_accumulated_in_float64() -> None:
    """A million equal numbers, whose sum in bfloat16 or float32 would stop growing."""
    weight = torch.full((1000, 1000), 0.1, dtype=torch.bfloat16)
    exact = float(weight[0, 0]) * 1000
    assert WeightNorm().matrix(StoredMatrix(weight)) == pytest.approx(exact, rel=1e-12)
