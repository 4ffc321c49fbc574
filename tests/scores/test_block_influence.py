"""Block influence against a naive reference: whole forwards with output hooks, cosines in float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.backend.data.calibration import read_calibration
from surgeon.backend.model.loading import forget_model, load_tokenizer
from surgeon.backend.scoring.context import Settings
from surgeon.backend.scoring.score_runner import measure
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.scoring.score import Average, Score, average
from surgeon.errors import Cancelled
from surgeon.scores.block_influence import influence
from tests.backend.tiny_models import (
    FAMILIES,
    LAYERS,
    layers_of,
    load_plainly,
    save_tiny,
    write_tokenizer,
)
from tests.export.replaying import Step, run
from tests.jobs import job_context, keep_silent, never
from tests.scores.test_weight_norm import open_draft


@torch.inference_mode()
def naive(model: nn.Module, layers: nn.ModuleList, tokens_BT: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return 1 minus the mean cosine of each layer and sequence, (layers, sequences), one whole forward each."""
    return np.array([_naive_sequence(model, layers, tokens_T) for tokens_T in tokens_BT]).T


def _naive_sequence(model: nn.Module, layers: nn.ModuleList, tokens_T: torch.Tensor) -> list[float]:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(_layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    model(input_ids=tokens_T[None], use_cache=False)
    for handle in handles:
        handle.remove()
    row = []
    for before, after in seen:
        left, right = before[0, 1:].double().numpy(), after[0, 1:].double().numpy()
        cosine = (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)
        row.append(float(1 - cosine.mean()))
    return row


def influences(base: Path, *steps: Any, emit: Any = keep_silent, cancelled: Any = never, **settings: Any) -> Score:
    """Measure block influence after a recipe."""
    # Two sequences per batch, so that five make three batches, the last one smaller.
    chosen: dict[str, Any] = {"sequences": 5, "length": 16, "batch_tokens": 32, **settings}
    try:
        (score,) = measure(
            open_draft(base, *steps), ["block_influence"], Settings(base, **chosen), job_context(emit, cancelled)
        )
    finally:
        forget_model()
    return score


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_that_of_whole_forwards_with_hooks(family: str, tmp_path: Path) -> None:
    """Value and standard error, on every family, with several batches."""
    base = save_tiny(family, tmp_path / "base")
    write_tokenizer(base)
    score = influences(base)
    calibration = read_calibration(None, base, load_tokenizer(base), sequences=5, length=16, seed=0)
    model = load_plainly(base)
    expected = naive(model, layers_of(model, family), calibration.tokens_BT)
    assert list(score.values) == [str(index) for index in range(LAYERS)]
    assert np.allclose(list(score.values.values()), expected.mean(1), atol=2e-6)
    assert np.allclose(list(score.errors.values()), expected.std(1, ddof=1) / np.sqrt(5), atol=2e-6)
    assert score.provenance.data


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_after_a_recipe_the_score_is_that_of_the_exported_model(family: str, tmp_path: Path) -> None:
    """Measuring the draft in memory is measuring what would be written."""
    base = save_tiny(family, tmp_path / "base")
    write_tokenizer(base)
    steps: list[Step] = [{"prune": {"layers": [1, 4]}}, {"expand": {"after": [0, 2], "init": "duplicate"}}]
    score = influences(base, *steps)
    run(base, tmp_path / "out", *steps)
    exported = influences(tmp_path / "out")
    assert list(score.values) == ["0", "0+1", "2", "3", "3+1", "5"]
    assert list(score.values.values()) == list(exported.values.values())
    assert list(score.errors.values()) == list(exported.errors.values())


def test_an_inserted_identity_has_no_influence(tmp_path: Path) -> None:
    """It passes its input through bit for bit."""
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    score = influences(base, {"expand": {"after": [2], "init": "mean"}})
    assert score.values["2+1"] == pytest.approx(0, abs=1e-6)


def test_the_last_layer_is_seen_before_the_final_norm(tmp_path: Path) -> None:
    """`hidden_states[-1]` comes after the norm, and would give another number."""
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    model = load_plainly(base)
    calibration = read_calibration(None, base, load_tokenizer(base), sequences=5, length=16, seed=0)
    with torch.inference_mode():
        states = model(calibration.tokens_BT, output_hidden_states=True, use_cache=False).hidden_states
    normed = 1 - torch.cosine_similarity(states[-2][:, 1:], states[-1][:, 1:], dim=-1).mean().item()
    assert abs(influences(base).values[str(LAYERS - 1)] - normed) > 1e-3


def test_position_zero_does_not_count() -> None:
    """A massive activation there changes nothing."""
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 3, 7, 5, generator=generator)
    expected = influence(before, after)
    after[:, 0] = 1e6
    assert torch.equal(influence(before, after), expected)
    left, right = before[:, 1:].double().numpy(), after[:, 1:].double().numpy()
    cosine = (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)
    assert np.allclose(expected.numpy(), 1 - cosine.mean(1), atol=1e-6)


def test_a_standard_error_needs_two_sequences() -> None:
    """Of one it cannot be told; of several it is numpy's."""
    assert average([3.0]) == Average(3.0, None)
    values = [0.1, 0.4, 0.2, 0.9]
    found = average(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.error == pytest.approx(np.std(values, ddof=1) / 2)


def test_rows_arrive_layer_by_layer_before_the_next_layer_runs(tmp_path: Path) -> None:
    """Layer-major: all batches of one layer, its row, then the next layer."""
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    rows: list[str] = []
    asked: list[int] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "scored":
            rows.append(body["layer"])

    def cancelled() -> bool:
        asked.append(len(rows))
        return False

    influences(base, emit=emit, cancelled=cancelled)
    assert rows == [str(index) for index in range(LAYERS)]
    assert [asked.count(index) for index in range(LAYERS)] == [3] * LAYERS


def test_a_cancel_is_heeded_between_batches_and_leaves_the_model_whole(tmp_path: Path) -> None:
    """The resident model serves the next job, so its layers must be back."""
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    whole = influences(base)
    draft = open_draft(base, {"prune": {"layers": [0]}})
    settings = Settings(base, sequences=5, length=16, batch_tokens=32)
    measure(open_draft(base), ["block_influence"], settings, job_context())
    asked = iter([False] * 4 + [True])
    with pytest.raises(Cancelled):
        measure(draft, ["block_influence"], settings, job_context(cancelled=lambda: next(asked)))
    shutil.rmtree(cache_directory() / "scores")
    (again,) = measure(open_draft(base), ["block_influence"], settings, job_context())
    forget_model()
    assert again.values == whole.values


def test_on_a_real_model_the_influence_is_that_of_other_peoples_measurements(demo_model: Path) -> None:
    """SmolLM2-135M-Instruct and the Python documentation: layer 0 turns most, 25, 14 and 13 among the five least."""
    (score,) = measure(open_draft(demo_model), ["block_influence"], Settings(demo_model), job_context())
    forget_model()
    ranking = score.ranking(list(score.values))
    assert ranking[-1] == "0"
    assert {"25", "14", "13"} <= set(ranking[:5])
    assert score.values["29"] < 0.6  # after the final norm it would be about 0.9
