"""Bars and ranks of a score column: outliers, errors, negative values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from surgeon.ui.state.score_columns import ColumnScale, ScoreColumn


def test_one_outlier_leaves_the_other_bars_as_they_would_be_without_it() -> None:
    """Linear before and after, whatever its size and sign."""
    values = {str(number): float(number) for number in range(10)}
    plain = ColumnScale(values)
    for outlier in (1e3, 1e9, -1e6):
        scale = ColumnScale({**values, "x": outlier})
        assert scale.cut
        assert [scale.length(value) for value in values.values()] == [plain.length(value) for value in values.values()]
        assert scale.length(outlier) == float(outlier > 0)
        assert scale.beyond(outlier) == (outlier > 0)
    assert not plain.cut


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_lengths_grow_with_the_values_and_stay_in_the_cell(numbers: list[float]) -> None:
    scale = ColumnScale({str(at): value for at, value in enumerate(numbers)})
    lengths = [scale.length(value) for value in sorted(numbers)]
    assert lengths == sorted(lengths)
    assert all(0 <= length <= 1 for length in lengths)


def test_a_rank_within_its_error_is_told_apart() -> None:
    """Two standard errors of the difference to the neighbour."""
    column = ScoreColumn("removal", "d")
    for key, value in (("0", 1.0), ("1", 1.1), ("2", 5.0)):
        column.add_value(key, value, 0.2)
    assert column.uncertain == {"0", "1"}
    column.add_value("1", 3.0, 0.2)
    assert column.uncertain == frozenset()
