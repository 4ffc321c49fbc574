"""Overlap of rankings, and what chance gives: against counting, drawing, and the statistics module."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.core.scoring.ranking_agreement import (
    approximate_chance,
    chance_jaccard,
    jaccard,
    overlap,
    spearman,
    top,
    undecided,
)
from surgeon.errors import UsageError


@given(st.integers(1, 7).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count))))
def test_the_chance_level_is_the_mean_over_all_pairs_of_subsets(case: tuple[int, int]) -> None:
    """Counted out, with fractions."""
    count, chosen = case
    subsets = [set(one) for one in itertools.combinations(range(count), chosen)]
    pairs = [
        Fraction(len(one & other), len(one | other)) if chosen else Fraction(1) for one in subsets for other in subsets
    ]
    assert chance_jaccard(chosen, count) == pytest.approx(float(sum(pairs) / len(pairs)), abs=1e-12)


@given(st.integers(1, 60).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count))))
def test_the_chance_level_lies_near_its_approximation_and_never_far_above(case: tuple[int, int]) -> None:
    """By Jensen's inequality, k / (2c - k) being convex in k, it is never below p / (2 - p), and nears it with size."""
    count, chosen = case
    share = chosen / count
    exact, usual = chance_jaccard(chosen, count), approximate_chance(share)
    assert usual - 1e-12 <= exact <= 1
    # A second-order bound: half the largest curvature, 4c / (2c - k)^3 <= 4 / c^2, times the hypergeometric variance.
    variance = chosen * share * (1 - share) * (count - chosen) / max(count - 1, 1)
    assert exact - usual <= 2 / chosen**2 * variance + 1e-12


def test_of_two_hundred_and_ten_matrices_chance_gives_what_the_paper_must_beat() -> None:
    """210 matrices, as in a Llama of 30 layers: drawn ten thousand times."""
    draw = random.Random(0)
    for share, usual in ((0.30, 0.1765), (0.75, 0.6)):
        chosen = round(share * 210)
        drawn = [jaccard(draw.sample(range(210), chosen), draw.sample(range(210), chosen)) for _ in range(10_000)]
        error = statistics.stdev(drawn) / 100
        assert chance_jaccard(chosen, 210) == pytest.approx(statistics.fmean(drawn), abs=5 * error)
        assert approximate_chance(share) == pytest.approx(usual, abs=1e-4)


def test_thousands_of_matrices_are_no_trouble() -> None:
    """Their binomials are beyond any float."""
    assert chance_jaccard(3000, 10_000) == pytest.approx(approximate_chance(0.3), abs=1e-4)


RANKINGS = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@given(RANKINGS, st.floats(0.05, 1.0))
def test_a_ranking_agrees_with_itself_wholly(values: list[int], share: float) -> None:
    """Ties or none."""
    ranking = {str(at): float(value) for at, value in enumerate(values)}
    found = overlap(ranking, ranking, share)
    assert found.count == len(values)
    assert found.chosen == round(share * len(values))
    assert found.jaccard == 1
    assert spearman(ranking, ranking) == pytest.approx(1) or len(set(values)) == 1
    assert len(top(ranking, share)) == found.chosen


@given(RANKINGS, st.floats(0.05, 1.0))
def test_a_cut_is_undecided_where_another_order_of_equals_would_choose_others(values: list[int], share: float) -> None:
    """Told by reversing the order in which they come."""
    ranking = {at: float(value) for at, value in enumerate(values)}
    chosen, others = set(top(ranking, share)), set(top(dict(reversed(ranking.items())), share))
    tied = undecided(ranking, share)
    assert (tied > 0) == (chosen != others)
    if tied:
        (edge,) = {ranking[at] for at in chosen ^ others}
        assert tied == values.count(int(edge))


@given(RANKINGS, st.data())
def test_the_rank_correlation_is_pearson_on_mean_ranks(values: list[int], data: st.DataObject) -> None:
    """With ranks by counting."""
    others = data.draw(st.lists(st.integers(-5, 5), min_size=len(values), max_size=len(values)))
    left = {at: float(value) for at, value in enumerate(values)}
    right = {at: float(value) for at, value in enumerate(others)}
    ranks = [
        [sum(b < a for b in side) + (sum(b == a for b in side) + 1) / 2 for a in side] for side in (values, others)
    ]
    found = spearman(left, right)
    if len(set(values)) == 1 or len(set(others)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(statistics.correlation(*ranks), abs=1e-9)


def test_rankings_of_different_things_are_refused() -> None:
    """By the name of one of them."""
    with pytest.raises(UsageError, match=r"only one has b \(2 in all\)"):
        overlap({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 2.0}, 0.3)
    with pytest.raises(UsageError, match="cannot be chosen"):
        chance_jaccard(3, 2)
