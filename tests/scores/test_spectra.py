"""Scores made of singular values, against numpy's own SVD in float64, and against matrices whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.backend.model.matrices import StoredMatrix
from surgeon.errors import ScoreError
from surgeon.scores.power_law_alpha import PowerLawAlpha
from surgeon.scores.random_matrix import RandomMatrix, median_of_bulk
from surgeon.scores.spectrum_compat import SpectrumCompat
from surgeon.scores.stable_rank import StableRank
from tests.backend.tiny_models import LAYERS, load_plainly
from tests.scores.sample_models import MEASURED_FAMILIES, Array, patient, scores

SHAPES = ((576, 576), (1536, 576), (192, 576))
"""The three aspect ratios of a small Llama."""


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return Gaussian entries of variance 1."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def singular_values(weight: torch.Tensor) -> Array:
    """Return them from numpy's SVD in float64."""
    return np.asarray(np.linalg.svd(weight.double().numpy(), compute_uv=False))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_from_the_gram_matrix_are_those_of_an_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """To 1e-7 of the largest, far below what any score looks at."""
    weight = noise(*shape).to(dtype)
    exact = singular_values(weight)
    assert np.allclose(StoredMatrix(weight).singular_values.numpy(), exact, atol=1e-7 * exact[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_noise_has_at_most_one_outlier_per_edge_and_its_own_sigma(shape: tuple[int, int], seed: int) -> None:
    """Pure Gaussian matrices, as at initialisation."""
    details = RandomMatrix().details(StoredMatrix((0.02 * noise(*shape, seed=seed)).float()))
    assert details["above"] <= 1
    assert details["below"] <= 1
    assert details["sigma"] == pytest.approx(0.02, rel=0.01)
    assert details["edge_high"] == pytest.approx(0.02 * (np.sqrt(max(shape)) + np.sqrt(min(shape))), rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_planted_rank_of_five_is_found_as_five(shape: tuple[int, int]) -> None:
    """Five directions well above the bulk, in noise."""
    signal = noise(shape[0], 5, seed=1) @ noise(5, shape[1], seed=2) * 0.3
    matrix = StoredMatrix(noise(*shape) + signal)
    assert RandomMatrix().matrix(matrix) == pytest.approx(5, abs=0)
    exact = singular_values(noise(*shape) + signal)
    details = RandomMatrix().details(matrix)
    assert details["energy_above"] == pytest.approx((exact[:5] ** 2).sum() / (exact**2).sum())


def test_a_direction_below_the_bulk_counts_too_but_not_in_a_square_matrix() -> None:
    """A square matrix has no lower edge: its smallest singular values go to zero anyway."""
    for shape, below in (((1536, 576), 3), ((576, 576), 0)):
        left, spectrum, right = np.linalg.svd(noise(*shape).numpy(), full_matrices=False)
        spectrum[-3:] *= 0.2
        details = RandomMatrix().details(StoredMatrix(torch.from_numpy((left * spectrum) @ right)))
        assert details["below"] == below


@pytest.mark.parametrize("ratio", [0.1, 0.375, 1 / 3, 0.75, 1.0])
def test_the_median_of_the_bulk_is_that_of_many_random_eigenvalues(ratio: float) -> None:
    """Against a sample: 1200 columns of noise."""
    long = 1200
    short = round(long * ratio)
    weight = noise(short, long).numpy()
    sample = np.linalg.eigvalsh(weight @ weight.T / long)
    assert median_of_bulk(short / long) == pytest.approx(np.median(sample), rel=0.01)


def naive_spectrum_ratio(weight: torch.Tensor) -> float:
    """Sigma from the quartiles, threshold sigma (1 + sqrt(beta)), sum above over sum below over the largest."""
    found = singular_values(weight)
    high, low = np.percentile(found, [75, 25])
    threshold = (high - low) / 1.349 * (1 + np.sqrt(min(weight.shape) / max(weight.shape)))
    return float(found[found > threshold].sum() / found[found <= threshold].sum() / found[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_spectrum_ratio_is_its_formula(shape: tuple[int, int]) -> None:
    """With a spectrum that has something on both sides of the threshold."""
    weight = noise(*shape) * torch.logspace(0, -2, shape[1], dtype=torch.float64)
    assert SpectrumCompat().matrix(StoredMatrix(weight)) == pytest.approx(naive_spectrum_ratio(weight), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stable_rank_is_the_ratio_of_norms(shape: tuple[int, int]) -> None:
    """Frobenius norm squared over spectral norm squared, by numpy."""
    weight = noise(*shape).float()
    wide = weight.double().numpy()
    expected = (np.linalg.norm(wide) / np.linalg.norm(wide, 2)) ** 2
    assert StableRank().matrix(StoredMatrix(weight)) == pytest.approx(expected, rel=1e-9)


def naive_alpha(eigenvalues: Array) -> float:
    """Try every start of the tail one after the other; the closest by Kolmogorov-Smirnov distance wins."""
    ordered = np.sort(eigenvalues)
    best = (np.inf, 0.0)
    for start in range(len(ordered) - 10):
        tail = ordered[start:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        law = 1 - (tail / tail[0]) ** (1 - alpha)
        distance = np.abs(law - np.arange(len(tail)) / len(tail)).max()
        best = min(best, (distance, alpha))
    return best[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_exponent_is_that_of_a_naive_loop(seed: int) -> None:
    """Over all starts of the tail, on heavy-tailed matrices."""
    weight = noise(120, 80, seed=seed) * torch.linspace(0.1, 2, 80, dtype=torch.float64) ** 3
    expected = naive_alpha(singular_values(weight) ** 2)
    assert -PowerLawAlpha().matrix(StoredMatrix(weight)) == pytest.approx(expected, rel=1e-6)


def test_the_exponent_of_a_pareto_law_is_found() -> None:
    """Eigenvalues drawn from a power law of exponent 3."""
    from surgeon.scores.power_law_alpha import fit_exponent

    uniform = np.random.default_rng(0).random(3000)
    drawn = torch.from_numpy(np.sort((1 - uniform) ** (-1 / 2)))
    assert fit_exponent(drawn) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("kind", [RandomMatrix, SpectrumCompat, StableRank])
def test_a_matrix_of_zeros_has_no_score_to_divide_by(kind: Any) -> None:
    """A silenced projection is all zeros."""
    assert kind().matrix(StoredMatrix(torch.zeros(20, 30))) == 0


@pytest.mark.parametrize("family", MEASURED_FAMILIES)
def test_each_matrix_of_a_checkpoint_has_its_own_stable_rank(family: str, tmp_path: Path) -> None:
    """The names say which stored tensor, and which part of it; numpy looks at the same parts."""
    base = patient(family, tmp_path / "base")
    (score,) = scores(base, "stable_rank").values()
    stored = load_file(base / "model.safetensors")
    for key in map(str, range(LAYERS)):
        parts = naive_parts(family, stored, key)
        assert set(score.matrices[key]) == set(parts)
        for name, weight in parts.items():
            squares = singular_values(weight) ** 2
            assert score.matrices[key][name] == pytest.approx(squares.sum() / squares[0], rel=1e-5), name
        assert score.values[key] == pytest.approx(np.mean(list(score.matrices[key].values())))


def naive_parts(family: str, stored: dict[str, torch.Tensor], layer: str) -> dict[str, torch.Tensor]:
    """Take the stored matrices of a layer apart by hand."""
    found = {}
    for full, weight in stored.items():
        before, dot, suffix = full.partition(f".{layer}.")
        if not dot or weight.dim() < 2 or before.rpartition(".")[2] not in ("layers", "h"):
            continue
        if suffix == "self_attn.qkv_proj.weight":  # 4 query heads, 2 key and 2 value heads of 8
            for part, rows in (("query", slice(0, 32)), ("key", slice(32, 48)), ("value", slice(48, 64))):
                found[f"{suffix}[attention.{part}]"] = weight[rows]
        elif suffix == "mlp.gate_up_proj.weight":
            found |= {f"{suffix}[mlp.gate]": weight[:48], f"{suffix}[mlp.up]": weight[48:]}
        elif suffix == "attn.c_attn.weight":  # stored transposed
            for number, part in enumerate(("query", "key", "value")):
                found[f"{suffix}[attention.{part}]"] = weight[:, 32 * number : 32 * (number + 1)]
        elif suffix == "attention.query_key_value.weight":  # head by head
            by_head = weight.reshape(4, 3, 8, 32)
            for number, part in enumerate(("query", "key", "value")):
                found[f"{suffix}[attention.{part}]"] = by_head[:, number].reshape(32, 32)
        else:
            found[suffix] = weight
    return found


def test_fused_projections_score_as_the_separate_ones_of_an_equivalent_llama(tmp_path: Path) -> None:
    """A Phi-3 whose weights are those of a Llama, put together."""
    llama = patient("llama", tmp_path / "llama")
    phi = patient("phi3", tmp_path / "phi")
    apart, together = load_file(llama / "model.safetensors"), load_file(phi / "model.safetensors")
    for index in range(LAYERS):
        start = f"model.layers.{index}."
        query, key, value, gate, up = (
            apart[f"{start}{name}_proj.weight"]
            for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")
        )
        together[f"{start}self_attn.qkv_proj.weight"] = torch.cat([query, key, value])
        together[f"{start}mlp.gate_up_proj.weight"] = torch.cat([gate, up])
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            together[f"{start}{name}.weight"] = apart[f"{start}{name}.weight"]
    save_file(together, phi / "model.safetensors", {"format": "pt"})
    names = "random_matrix,stable_rank,spectrum_compat,power_law_alpha,lamp,weight_norm"
    one, other = scores(llama, names), scores(phi, names)
    for name, score in one.items():
        assert list(score.values.values()) == pytest.approx(list(other[name].values.values()), rel=1e-9), name


def test_experts_are_matrices_of_their_own(tmp_path: Path) -> None:
    """Stored one by one, and each with its own score."""
    base = patient("mixtral", tmp_path / "base")
    (score,) = scores(base, "stable_rank").values()
    experts = [name for name in score.matrices["0"] if "experts" in name]
    assert len(experts) == 12
    assert len({score.matrices["0"][name] for name in experts}) == 12


def test_weights_that_are_not_finite_are_an_error_before_any_eigenvalue(tmp_path: Path) -> None:
    """It names the layer and the tensor."""
    base = patient("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.4.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ScoreError, match=r"layer 4: model\.layers\.4\.mlp\.up_proj\.weight holds inf"):
        scores(base, "random_matrix")


def test_plain_transformers_loads_the_patients(tmp_path: Path) -> None:
    """So that what is scored is what is run."""
    for family in MEASURED_FAMILIES:
        load_plainly(patient(family, tmp_path / family))
