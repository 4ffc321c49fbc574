"""Numbers as they are written."""

from __future__ import annotations

import pytest

from surgeon.ui.state.formatting import (
    MINUS,
    bar_text,
    bytes_change,
    bytes_text,
    count_text,
    decimals_for,
    seconds_text,
    value_text,
)
from surgeon.ui.state.layer_listing import step_numbers_text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (576, "576"), (999, "999"), (1000, "1k"), (134_515_008, "134.5M"), (999_960, "1M"), (70.6e9, "70.6B")],
)
def test_counts_are_written_with_one_decimal(count: float, text: str) -> None:
    assert count_text(count) == text


def test_bytes_are_written_in_powers_of_ten_with_a_true_minus() -> None:
    assert bytes_text(269_030_016) == "269 MB"
    assert bytes_change(-14_158_080) == f"{MINUS}14.2 MB"
    assert bytes_change(0) == "0 B"


@pytest.mark.parametrize("values", [[0.989, 0.024], [376.0, 352.0], [0.0, 0.0], [1e-7], [123456.0], [-0.5, 3.2]])
def test_a_value_never_needs_more_than_its_cells(values: list[float]) -> None:
    decimals = decimals_for(values)
    assert all(len(value_text(value, decimals)) <= 6 for value in values)


def test_a_bar_is_as_wide_as_asked_and_never_empty() -> None:
    assert bar_text(0, 4) == "▏   "
    assert bar_text(0.5, 4) == "██  "
    assert bar_text(7, 4) == "████"


def test_durations_are_written_as_people_say_them() -> None:
    assert [seconds_text(seconds) for seconds in (11.2, 200, 7500)] == ["11s", "3m20s", "2h05m"]


def test_steps_in_messages_count_from_one_as_in_the_recipe_pane() -> None:
    assert step_numbers_text("steps[0].prune.layers: is empty") == "step 1, prune.layers: is empty"
    assert step_numbers_text("steps[11]: a step is one operation") == "step 12: a step is one operation"
