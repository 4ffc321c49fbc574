"""What lies outside the layers, frozen by its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import compile_plan, outside_kind
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import RecipeError
from tests.architectures.building import small_config, tiny_model
from tests.backend.tiny_models import save_tiny
from tests.backend.training_recipes import pupil, training
from tests.export.replaying import run


def _frozen(base: Path, *steps: dict[str, Any]) -> frozenset[str]:
    draft = draft_of(read_structure(open_checkpoint(base)))
    return compile_plan(fold(draft, [step_of(*one.popitem(), "test") for one in steps])).frozen


def test_a_tied_head_is_not_frozen_without_the_embedding_that_it_is(tmp_path: Path) -> None:
    """Its weights would be trained all the same; frozen with the embedding, or once it is untied, it stays."""
    base = save_tiny("llama", tmp_path / "base", tie_word_embeddings=True)
    with pytest.raises(RecipeError, match="the head has no weights of its own") as caught:
        _frozen(base, {"freeze": {"outside": ["head"]}})
    assert "untie" in str(caught.value)
    assert _frozen(base, {"freeze": {"outside": ["head", "embedding"]}}) == {"model.embed_tokens.weight"}
    assert _frozen(base, {"freeze": {"outside": ["embedding"]}}, {"freeze": {"outside": ["head"]}})
    assert _frozen(base, {"untie": {}}, {"freeze": {"outside": ["head"]}}) == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"except": "last 3", "outside": ["embedding"]}, "freezes embedding, head and norm already"),
        ({"matrices": "1.mlp.up", "roles": ["attention"]}, "does not go with `matrices`"),
        ({"layers": "inserted"}, "chooses no layer"),
        ({"layers": "inserted", "outside": ["embedding"]}, "chooses no layer"),
        ({"layers": "0", "except": "1"}, "takes one of"),
        ({}, "takes one of"),
    ],
)
def test_what_would_silently_freeze_more_or_less_than_it_says_is_refused(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """Each of these reads as if it left something free, or held something, that it does not."""
    base = save_tiny("llama", tmp_path / "base")
    with pytest.raises(RecipeError, match=said):
        _frozen(base, {"freeze": fields})


def test_layers_but_the_last_leave_the_head_and_the_norm_free(tmp_path: Path) -> None:
    """Which is what healing the head asks for; `except` holds them."""
    base = save_tiny("llama", tmp_path / "base")
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    free = _frozen(base, {"freeze": {"layers": "except last 3", "outside": ["embedding"]}})
    held = _frozen(base, {"freeze": {"except": "last 3"}})
    assert free & outside == {"model.embed_tokens.weight"}
    assert held - free == outside - free
    assert {name.split(".")[2] for name in free if name.startswith("model.layers.")} == {"0", "1", "2"}


def test_a_head_of_its_own_stays_while_the_embedding_is_trained(tmp_path: Path) -> None:
    """Byte for byte, in float32, where any step would show."""
    base = pupil(tmp_path)
    freeze = {"freeze": {"layers": "all", "outside": ["head"]}}
    run(base, tmp_path / "out", freeze, training(steps=2), root=str(tmp_path))
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "out"))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"model.embed_tokens.weight", "model.norm.weight"}


@pytest.mark.parametrize(
    "model_type", ["ctrl", "rembert", "rwkv", "xlnet", "xlm", "bert", "modernbert-decoder", "gpt2"]
)
def test_embedding_and_head_are_called_what_transformers_says_they_are(model_type: str) -> None:
    """The types whose names are unlike all others'."""
    config = small_config(model_type)
    config.tie_word_embeddings = False
    model: Any = tiny_model(config)
    names = {id(value): name for name, value in model.named_parameters()}
    for kind, module in (("embedding", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        assert outside_kind(names[id(module.weight)]) == kind
