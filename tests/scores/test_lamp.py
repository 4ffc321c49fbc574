"""LAMP against an exact sort of all weights of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from surgeon.backend.model.matrices import StoredMatrix
from surgeon.scores.lamp import Lamp
from tests.scores.sample_models import Array, patient, scores


def exact_shares(weights: list[torch.Tensor], kept: float = 0.5) -> Array:
    """Sort each matrix by magnitude, divide each square by the sum from it upwards, rank all matrices together."""
    ranked = []
    for weight in weights:
        squares = np.sort(weight.double().numpy().ravel() ** 2)
        ranked.append(squares / np.cumsum(squares[::-1])[::-1])
    together = np.sort(np.concatenate(ranked))
    threshold = together[len(together) - round(kept * len(together))]
    return np.array([(one >= threshold).mean() for one in ranked])


def shares(weights: list[torch.Tensor], kept: float = 0.5) -> Array:
    """Return ours."""
    kind = Lamp(kept=kept)
    return np.array(kind.finalize([kind.matrix(StoredMatrix(weight)) for weight in weights]))


def matrices(dtype: torch.dtype) -> list[torch.Tensor]:
    """Return matrices of different sizes, scales and tails."""
    torch.manual_seed(0)
    tails = [torch.randn(300, 200), torch.randn(500, 100) * torch.randn(500, 100), torch.randn(100, 100) ** 3]
    return [(scale * one).to(dtype) for scale, one in zip((0.02, 0.1, 0.001), tails, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_shares_are_those_of_an_exact_sort(dtype: torch.dtype, kept: float) -> None:
    """To 2e-3, and together they keep what was asked."""
    weights = matrices(dtype)
    assert np.allclose(shares(weights, kept), exact_shares(weights, kept), atol=2e-3)
    sizes = np.array([weight.numel() for weight in weights])
    assert (shares(weights, kept) * sizes).sum() / sizes.sum() == pytest.approx(kept, abs=1e-9)


def test_ties_are_ranked_in_some_order_not_dropped_together() -> None:
    """A matrix of four magnitudes, each thousands of times."""
    torch.manual_seed(0)
    weights = [torch.randint(1, 5, (200, 200)).float(), torch.randn(200, 200)]
    assert np.allclose(shares(weights), exact_shares(weights), atol=5e-3)


def test_a_silenced_matrix_keeps_nothing() -> None:
    """All its scores are zero over zero."""
    assert shares([torch.zeros(50, 50), torch.randn(50, 50)]).tolist() == pytest.approx([0, 1])


def test_the_layers_of_a_checkpoint_share_one_budget(tmp_path: Path) -> None:
    """The share of a layer is the mean of its matrices'; half of all weights stay."""
    base = patient("llama", tmp_path / "base")
    score = scores(base, "lamp")["lamp"]
    stored = load_file(base / "model.safetensors")
    names = [(key, name) for key, row in score.matrices.items() for name in row]
    weights = [stored[f"model.layers.{key}.{name}"] for key, name in names]
    expected = exact_shares(weights)
    assert np.allclose([score.matrices[key][name] for key, name in names], expected, atol=3e-3)
    assert score.values["0"] == pytest.approx(np.mean(list(score.matrices["0"].values())))
