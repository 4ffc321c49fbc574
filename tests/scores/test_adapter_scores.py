"""Scores of adapters against dense formulas: the product formed, decomposed, compared."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.scoring.requests import requested_scores
from surgeon.core.scoring.score_kinds import AdapterScore
from surgeon.scores.adapter_norm import AdapterNorm
from surgeon.scores.adapter_rank import AdapterRank
from surgeon.scores.intruder_dimensions import IntruderDimensions


def drawn(seed: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((12, 9), (12, rank), (rank, 9))
    weight, b, a = (torch.randn(shape, generator=generator) for shape in shapes)
    return weight, b, a


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 9))
def test_norm_and_rank_are_those_of_the_product(seed: int, rank: int) -> None:
    weight, b, a = drawn(seed, rank)
    update = (b @ a).double()
    assert AdapterNorm().matrix(weight, b, a) == pytest.approx(float(update.norm() / weight.double().norm()), rel=1e-5)
    shares = torch.linalg.svdvals(update)
    shares = shares[shares > shares[0] * 1e-7] / shares.sum()
    expected = float(torch.exp(-(shares * shares.log()).sum()))
    assert AdapterRank().matrix(weight, b, a) == pytest.approx(expected, rel=1e-4)


def test_equal_directions_count_in_full_and_one_alone_counts_one() -> None:
    eye = torch.eye(8)
    assert AdapterRank().matrix(eye, eye[:, :4], eye[:4]) == pytest.approx(4)
    assert AdapterRank().matrix(eye, torch.ones(8, 3), torch.ones(3, 8)) == pytest.approx(1)


def test_an_adapter_that_adds_nothing_scores_nothing() -> None:
    weight, b, a = drawn(0, 3)
    zero = torch.zeros_like(b)
    for kind in (AdapterNorm(), AdapterRank(), IntruderDimensions()):
        assert kind.matrix(weight, zero, a) == 0


def test_a_large_new_direction_is_an_intruder_and_a_known_one_is_not() -> None:
    weight = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0]))[:, :5]
    new = torch.zeros(8, 1)
    new[6] = 9.0
    known = torch.zeros(8, 1)
    known[0] = 9.0
    along = torch.zeros(1, 5)
    along[0, 0] = 1.0
    kind = IntruderDimensions(largest=1)
    assert kind.matrix(weight, new, along) == 1
    assert kind.matrix(weight, known, along) == 0


def test_all_leaves_scores_of_adapters_out() -> None:
    assert not any(isinstance(kind, AdapterScore) for kind in requested_scores(["all"]))
