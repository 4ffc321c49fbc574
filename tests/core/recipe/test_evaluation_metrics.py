"""Figures from raw numbers, where these are ties or no numbers at all."""

from __future__ import annotations

import math

import pytest

from surgeon.core.recipe.evaluation_metrics import Measure, RawResults, figures_of
from surgeon.core.recipe.read_only_step import Bound
from surgeon.core.scoring.score import average
from surgeon.errors import GateError

NAN = math.nan


def test_a_model_that_computes_no_numbers_is_right_about_nothing() -> None:
    """Not by the place of its nan among the choices: every figure is nan, and no gate is met."""
    raw = RawResults(values=[[NAN, NAN], [-1.0, -2.0]], sizes=[[1, 1], [1, 1]], answers=[0, 0])
    figures = figures_of(Measure(kind="choices"), raw, None)
    for name in ("multiple_choice", "multiple_choice_normalised"):
        assert math.isnan(figures[name].value)
        with pytest.raises(GateError):
            Bound(at_least=0.5).judge(name, figures[name], None, "steps[0].require")


def test_preferences_of_a_model_that_computes_no_numbers_are_none_either() -> None:
    """Share and margin, against whatever base."""
    raw = RawResults(values=[[NAN, -1.0], [-1.0, -2.0]])
    figures = figures_of(Measure(kind="pairs"), raw, RawResults(values=[[-1.0, -1.0], [-1.0, -1.0]]))
    assert all(math.isnan(figure.value) for figure in figures.values())


def test_a_tie_is_half_a_preference() -> None:
    """So the base model is told to be as often right as wrong against itself, as while training with DPO."""
    raw = RawResults(values=[[-1.0, -2.0], [-3.0, -3.0], [-4.0, -1.0], [-2.0, -2.0]])
    figures = figures_of(Measure(kind="pairs"), raw, raw)
    assert figures["preference"].value == (1 + 0.5 + 0 + 0.5) / 4
    assert figures["reward_accuracy"].value == 0.5
    assert figures["reward_margin"].value == 0.0


@pytest.mark.parametrize("values", [[NAN, 1.0], [math.inf, 1.0], [NAN]])
def test_a_mean_of_no_numbers_is_no_number_and_no_failure(values: list[float]) -> None:
    """Its error neither."""
    found = average(values)
    assert not math.isfinite(found.value)
    assert found.error is None if len(values) == 1 else math.isnan(found.error or 0.0)
