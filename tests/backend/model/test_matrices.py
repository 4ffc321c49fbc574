"""Matrices cut from stored weights, put back, and their directions zeroed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.backend.model.matrices import cut, decile, put_back, truncate, zero_directions
from surgeon.core.plan.draft import Truncation
from surgeon.core.structure.fused_projections import Piece
from tests.backend.tiny_models import load_plainly
from tests.scores.sample_models import open_draft, patient


@pytest.mark.parametrize("piece", [Piece("r", 0, ((0, 4),)), Piece("r", 1, ((2, 5),)), Piece("r", 0, ((0, 2), (4, 6)))])
def test_what_is_cut_and_put_back_leaves_everything_as_it_was(piece: Piece) -> None:
    """And only its own part changes otherwise."""
    weight = torch.randn(8, 6)
    whole = weight.clone()
    part = cut(weight, piece).clone()
    put_back(weight, piece, part)
    assert torch.equal(weight, whole)
    put_back(weight, piece, torch.zeros_like(part))
    changed = weight != whole
    expected = torch.zeros_like(changed)
    for start, stop in piece.runs:
        expected.narrow(piece.axis, start, stop - start).fill_(True)
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("rank", [7, 10, 32, 576])
def test_the_ten_deciles_are_all_singular_values_once(rank: int) -> None:
    """However many there are."""
    places = [place for number in range(1, 11) for place in range(rank)[decile(rank, number)]]
    assert places == list(range(rank))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeroed_directions_are_numpys_rounded_once(dtype: torch.dtype) -> None:
    """The middle three of twenty."""
    torch.manual_seed(0)
    weight = torch.randn(30, 20).to(dtype)
    left, values, right = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    gone = values.copy()
    gone[8:11] = 0
    expected = torch.from_numpy((left * gone) @ right)
    found, lost = zero_directions(weight, slice(8, 11))
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=1e-6 if dtype is torch.float32 else 2e-2)
    assert lost == pytest.approx((values[8:11] ** 2).sum() / (values**2).sum())


def test_stacked_experts_are_truncated_one_by_one() -> None:
    """Each keeps its own largest directions."""
    torch.manual_seed(0)
    weight = torch.randn(3, 12, 10)
    expected = [zero_directions(one, slice(4, None))[0] for one in weight]
    truncate(weight, [Piece("experts.up", 0, ((0, 12),))], Truncation(rank=4))
    assert torch.allclose(weight, torch.stack(expected), atol=1e-6)
    assert torch.linalg.matrix_rank(weight, atol=1e-4).tolist() == [4, 4, 4]


@pytest.mark.parametrize("family", ["mixtral", "phi3"])
def test_a_part_of_a_fused_weight_is_truncated_in_memory_as_on_disk(family: str, tmp_path: Path) -> None:
    """Mixtral stores its experts one by one and stacks them on loading; Phi-3 has gate and up in one matrix."""
    base = patient(family, tmp_path / "base")
    role = "experts.up" if family == "mixtral" else "mlp.up"
    draft = open_draft(base, {"truncate": {"layers": [1], "roles": [role], "rank": 4}})
    model: Any = load_plainly(base)
    with apply_draft(model, draft) as edited, torch.no_grad():
        mlp: Any = edited.get_submodule("model.layers.1.mlp")
        fused = mlp.experts.gate_up_proj if family == "mixtral" else mlp.gate_up_proj.weight[None]
        ranks = [torch.linalg.matrix_rank(one, atol=1e-4).tolist() for one in (fused[:, :48], fused[:, 48:])]
    assert set(ranks[0]) == {32}
    assert set(ranks[1]) == {4}


def test_no_directions_lost_is_no_energy_lost() -> None:
    """Nor is there any in a matrix of zeros."""
    assert zero_directions(torch.eye(5), slice(0, 0))[1] == 0
    assert zero_directions(torch.zeros(5, 5), slice(0, 2))[1] == 0
