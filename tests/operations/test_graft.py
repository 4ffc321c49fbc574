"""Layers of another model among the base's: the same in both executors, refused where they do not fit."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.config_formats.mergekit import Mergekit
from surgeon.core.plan.draft import Draft, Grafted, Original
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold, pin_step
from surgeon.core.recipe.recipe import load_recipe
from surgeon.core.recipe.yaml_document import parse_value
from surgeon.errors import ArchitectureError, RecipeError, SurgeonError
from surgeon.session import Session
from tests.backend.tiny_models import load_plainly, make_tiny, save_tiny, some_tokens
from tests.config_formats.peers import draft_at, exported, recipe_of
from tests.export.replaying import run

FAMILIES = ("llama", "gemma2", "gpt2", "mixtral", "qwen2")
Pair = tuple[Path, Path]
Pairs = Callable[[str], Pair]


def save_other(family: str, directory: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a model of the same architecture with other weights."""
    model: Any = make_tiny(family, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    root = tmp_path_factory.mktemp("pairs")
    return functools.cache(
        lambda family: (save_tiny(family, root / family), save_other(family, root / f"{family}_other"))
    )


def graft(other: Path, **fields: Any) -> dict[str, Any]:
    return {"graft": {"from": str(other), "layers": "1-3", "after": 2, **fields}}


def grafted(base: Path, *steps: dict[str, Any]) -> Draft:
    return fold(draft_at(base), recipe_of(base, steps).steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graft_reloads_as_the_live_model_is(pairs: Pairs, family: str, tmp_path: Path) -> None:
    """The run's own proof: logits of what was written equal those of the live model, bit for bit."""
    base, other = pairs(family)
    result = run(base, tmp_path / "out", graft(other), {"prune": {"layers": [1]}}, verify=True)
    assert not any(check["passed"] is False for check in result["proof"].values())
    assert "equal bit for bit" in result["proof"]["logits"]["detail"]


def test_the_layers_are_those_of_the_other_model(pairs: Pairs, tmp_path: Path) -> None:
    """Told without surgeon: the loaded base with the loaded other model's modules in its list."""
    base, other = pairs("llama")
    run(base, tmp_path / "out", graft(other, layers=[4, 0], after=-1))
    model: Any = load_plainly(base)
    donor: Any = load_plainly(other)
    layers = [donor.model.layers[4], donor.model.layers[0], *model.model.layers]
    model.model.layers = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    for position, layer in enumerate(layers):
        layer.self_attn.layer_idx = position
    tokens = some_tokens()
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        found: Any = load_plainly(tmp_path / "out")(tokens, use_cache=False)
    assert torch.equal(found.logits, expected)


def test_both_fingerprints_stand_in_the_exported_recipe(pairs: Pairs, tmp_path: Path) -> None:
    base, other = pairs("llama")
    run(base, tmp_path / "out", graft(other))
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    (step,) = recipe.steps
    fingerprints = [draft_at(one).structure.checkpoint.fingerprint for one in (base, other)]
    assert [recipe.base.fingerprint, getattr(step.operation, "fingerprint", None)] == fingerprints


def test_a_graft_of_another_fingerprint_is_refused(pairs: Pairs) -> None:
    base, other = pairs("llama")
    with pytest.raises(RecipeError, match="fingerprint"):
        grafted(base, graft(other, fingerprint="0" * 16))


def test_later_steps_see_the_layers_as_inserted(pairs: Pairs) -> None:
    base, other = pairs("llama")
    draft = grafted(base, graft(other, layers="5"), {"freeze": {"except": "inserted"}}, {"prune": {"layers": [0]}})
    fingerprint = draft_at(other).structure.checkpoint.fingerprint
    expected = [Original(1), Original(2), Grafted(fingerprint, 5), *map(Original, range(3, 6))]
    assert [layer.source for layer in draft.layers()] == expected
    assert [bool(layer.frozen) for layer in draft.layers()] == [True, True, False, True, True, True]


def test_grafts_of_several_models_are_told_apart(pairs: Pairs, tmp_path: Path) -> None:
    base, other = pairs("llama")
    draft = grafted(base, graft(other), graft(save_tiny("llama", tmp_path / "third", tie_word_embeddings=True)))
    assert len(draft.checkpoints) == 2 + 1
    assert len({layer.source.donor for layer in draft.layers() if isinstance(layer.source, Grafted)}) == 2
    shards = {tensor.source.tensor.shard.parent for tensor in compile_plan(draft).tensors}  # type: ignore[union-attr]
    assert len(shards) == 3


@pytest.mark.parametrize(
    ("changes", "dtype", "named"),
    [
        ({"hidden_size": 64, "head_dim": 8}, torch.float32, "hidden_size"),
        ({"rms_norm_eps": 0.5}, torch.float32, "rms_norm_eps"),
        ({"rope_theta": 5.0}, torch.float32, "rope"),
        ({"attention_bias": True}, torch.float32, "attention_bias"),
        ({}, torch.bfloat16, "model.layers.0"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(
    pairs: Pairs, tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype, named: str
) -> None:
    other = save_other("llama", tmp_path / "other", dtype, **changes)
    with pytest.raises(ArchitectureError) as caught:
        grafted(pairs("llama")[0], graft(other))
    assert named in caught.value.where


def test_what_says_nothing_of_layers_may_differ(pairs: Pairs, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 4, "vocab_size": 50, "eos_token_id": 3, "tie_word_embeddings": True}
    other = save_other("llama", tmp_path / "other", **changes)
    assert len(grafted(pairs("llama")[0], graft(other)).layers()) == 9


def test_a_layer_of_a_kind_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    """All layers of this base attend to everything; half of the other's slide."""
    plain: dict[str, Any] = {"layer_types": ["full_attention"] * 6}
    base = save_tiny("gemma2", tmp_path / "base", **plain)
    other = save_other("gemma2", tmp_path / "other")
    with pytest.raises(ArchitectureError, match="of no layer of the base") as caught:
        grafted(base, graft(other, layers="0-1"))
    assert "layer_types" in caught.value.where
    kinds = json.loads((other / "config.json").read_text())["layer_types"]
    assert len(grafted(base, graft(other, layers=[kinds.index("full_attention")])).layers()) == 7


def test_another_model_type_is_refused(pairs: Pairs) -> None:
    with pytest.raises(ArchitectureError, match="is qwen2"):
        grafted(pairs("llama")[0], graft(pairs("qwen2")[0]))


@pytest.mark.parametrize(
    "fields", [{"layers": "4-9"}, {"layers": "x"}, {"layers": []}, {"layers": "3-1"}, {"after": 6}]
)
def test_layers_that_are_not_there_are_refused(pairs: Pairs, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        grafted(pairs("llama")[0], graft(pairs("llama")[1], **fields))


def test_a_model_that_is_not_there_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match="no such directory"):
        grafted(pairs("llama")[0], graft(tmp_path / "nowhere"))


def test_a_session_writes_the_fingerprint_down_and_undoes(pairs: Pairs, tmp_path: Path) -> None:
    base, other = pairs("llama")
    session = Session.open(str(base))
    step = session.step("graft", graft(other)["graft"])
    assert step == pin_step(step, Path.cwd())
    preview = session.apply(step)
    assert len(preview.draft.layers()) == 9
    path = session.save(tmp_path / "recipe.yaml")
    session.undo()
    assert len(session.draft.layers()) == 6
    session.close()
    again = Session.open(str(base), path)
    assert len(again.draft.layers()) == 9
    assert not again.unsaved
    again.close()


def test_slices_of_two_models_are_grafts_and_back(pairs: Pairs) -> None:
    base, other = pairs("llama")
    spans = [(base, [0, 3]), (other, [2, 5]), (base, [3, 4]), (other, [0, 1]), (base, [5, 6])]
    slices = [{"sources": [{"model": str(model), "layer_range": span}]} for model, span in spans]
    steps = Mergekit.read({"merge_method": "passthrough", "slices": slices}, draft_at(base)).steps
    recipe = recipe_of(base, steps)
    pinned = [pin_step(step, Path.cwd()) for step in recipe.steps]
    assert [step.operation.name for step in pinned] == ["prune", "graft", "graft"]
    name = draft_at(other).structure.checkpoint.fingerprint
    layers = [
        Grafted(name, layer) if model == other else Original(layer) for model, (first, end) in spans
        for layer in range(first, end)
    ]  # fmt: skip
    assert [layer.source for layer in fold(draft_at(base), pinned).layers()] == layers
    model = exported(base, steps)
    told = parse_value(Mergekit.write(model).text)["slices"]
    assert [(one["sources"][0]["model"], one["sources"][0]["layer_range"]) for one in told] == [
        (str(one), span) for one, span in spans
    ]
