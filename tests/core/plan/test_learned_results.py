"""Results of learned steps, found by their address."""

from __future__ import annotations

from typing import Any

import pytest

from surgeon.core.plan.learned_results import is_learned, result_tensors
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import LearningError, RecipeError


def test_a_result_that_is_gone_is_named_and_nothing_stands_in_for_it() -> None:
    """Whoever asks for its tensors learns where it was and what to do."""
    assert not is_learned("0123456789abcdef")
    with pytest.raises(LearningError, match="not there any more") as caught:
        result_tensors("0123456789abcdef")
    assert "0123456789abcdef" in caught.value.where
    assert "run the recipe again" in caught.value.hint


@pytest.mark.parametrize("operation", ["train", "learn_masks", "mask_weights"])
def test_how_long_it_takes_is_said_once(operation: str) -> None:
    """Refused as soon as the step is drafted, not once data and model have been loaded."""
    objective = {"objective": "lm"} if operation == "train" else {}
    step = step_of(operation, {**objective, "steps": 5, "epochs": 1.0}, "test").operation
    nothing: Any = None
    with pytest.raises(RecipeError, match="steps and epochs say twice how long it takes"):
        step.apply(nothing, {})


def test_looks_at_the_held_out_loss_need_something_held_out() -> None:
    """Or they would be asked for and never made."""
    step = step_of("train", {"objective": "lm", "eval_steps": 5}, "test").operation
    nothing: Any = None
    with pytest.raises(RecipeError, match=r"eval_steps: is of no use without held_out"):
        step.apply(nothing, {})
