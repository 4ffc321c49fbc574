"""Trained adapters are part of a layer: what would calculate with the weights below them alone is refused."""

from __future__ import annotations

from typing import Any

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.learned_results import PENDING
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.learning_step import with_learned_adapters
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import RecipeError
from tests.backend.tiny_models import save_tiny


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    """A model with adapters on the up-projections of layers 1 and 2, not trained yet."""
    base = save_tiny("llama", tmp_path_factory.mktemp("adapted") / "base")
    draft = draft_of(read_structure(open_checkpoint(base)))
    return fold(draft, [step_of("masked_lora", {"layers": "1-2", "roles": ["mlp.up"]}, "test")])


_READS_THEM = [
    ("expand", {"after": "1", "init": "duplicate"}), ("expand", {"after": "2", "init": "copy"}),
    ("expand", {"after": "0", "init": "mean"}), ("prune", {"layers": "2", "fold": True}),
    ("prune", {"layers": "1-2", "fold": True}), ("truncate", {"layers": "0-1", "roles": ["mlp"], "rank": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), _READS_THEM)
def test_weights_below_a_trained_adapter_are_not_taken_for_the_whole(
    name: str, fields: dict[str, Any], attached: Draft
) -> None:
    """A duplicate without it would be another layer, a mean without it another mean; untrained ones change nothing."""
    with pytest.raises(RecipeError, match=r"layer [12] has a trained adapter on mlp\.up") as caught:
        fold(with_learned_adapters(attached, PENDING), [step_of(name, fields, "test")])
    assert f"steps[0].{name}" in str(caught.value)
    assert "merge_adapters" in str(caught.value)
    fold(attached, [step_of(name, fields, "test")])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("expand", {"after": "3-4", "init": "duplicate"}), ("prune", {"layers": "1"}),
        ("prune", {"layers": "4", "fold": True}), ("truncate", {"layers": "all", "roles": ["mlp.down"], "rank": 4}),
    ],
)  # fmt: skip
def test_what_does_not_look_at_them_goes_on(name: str, fields: dict[str, Any], attached: Draft) -> None:
    """Layers move with their adapters; other layers and other matrices are free."""
    fold(with_learned_adapters(attached, PENDING), [step_of(name, fields, "test")])
