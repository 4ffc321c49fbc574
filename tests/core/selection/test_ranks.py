"""Ranks from importance: sums, bounds and proportions of what is shared out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.core.selection.rank_selection import ranks_by_spot, ranks_of
from surgeon.errors import SelectionError


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 200)), min_size=1, max_size=12),
    st.integers(1, 40), st.integers(1, 40),
)  # fmt: skip
def test_the_mean_is_kept_as_far_as_the_matrices_allow(rows: list[Any], mean: int, least: int) -> None:
    values, most = [row[0] for row in rows], [row[1] for row in rows]
    least = min(least, mean)
    found = ranks_of(values, most, mean, least)
    assert all(min(least, bound) <= rank <= bound for rank, bound in zip(found, most, strict=True))
    assert sum(found) <= mean * len(found)
    free = [at for at, value in enumerate(values) if value > 0 or not any(one > 0 for one in values)]
    if any(found[at] < most[at] for at in free):  # there was somewhere to put the rest
        assert sum(found) == max(mean * len(found), sum(min(least, bound) for bound in most))
    for one in free:
        for other in free:
            if values[one] >= values[other] and most[one] >= most[other]:
                assert found[one] >= found[other] - 1


def test_shares_are_in_proportion_above_the_least() -> None:
    assert ranks_of([3.0, 1.0, 0.0], [99] * 3, 8, 2) == [2 + 14, 2 + 4, 2]
    assert ranks_of([1.0, 1.0], [99, 99], 8, 1) == [8, 8]
    assert ranks_of([0.0, -1.0], [99, 99], 8, 1) == [8, 8]
    assert ranks_of([9.0, 1.0], [10, 99], 8, 1) == [10, 6]


@pytest.mark.parametrize("text", ["3.mlp.up", "mlp.up=4", "3.mlp.up=0", "3.mlp.up=x", 4])
def test_what_is_no_rank_is_refused(text: Any) -> None:
    with pytest.raises(SelectionError, match="is no rank"):
        ranks_by_spot([text])
