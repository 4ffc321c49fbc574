from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, Learned, draft_of
from surgeon.core.plan.expressions import Copy, Fill
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.errors import ArchitectureError
from tests.export.handmade_shards import random_tensor, write_shard

LAYERS = 4
_ENDS = {
    # For each family: what every layer has, what some have, and which.
    "gpt_neox_japanese": ("gpt_neox_japanese.layers", ["attention.dense.weight"], "attention.dense_bias", {LAYERS - 1}),
    "modernbert-decoder": ("model.layers", ["attn.Wo.weight", "mlp.Wo.weight"], "attn_norm.weight", {1, 2, 3}),
    "rwkv": ("rwkv.blocks", ["attention.output.weight", "feed_forward.value.weight"], "pre_ln.weight", {0}),
    "zaya": ("model.layers", ["mlp.gate.down_proj.weight"], "mlp.gate.router_states_scale", {1, 2, 3}),
}


def _plan(model_type: str, directory: Path, *steps: dict[str, Any]) -> Plan:
    return compile_plan(_draft(model_type, directory, *steps))


def _draft(model_type: str, directory: Path, *steps: dict[str, Any]) -> Draft:
    prefix, every, some, where = _ENDS[model_type]
    names = [f"{prefix}.{layer}.{name}" for layer in range(LAYERS) for name in every]
    names += [f"{prefix}.{layer}.{some}" for layer in sorted(where)]
    tensors = {name: random_tensor((4,) if name.endswith(some) else (4, 4), "F32", name) for name in names}
    directory.mkdir()
    write_shard(directory / "model.safetensors", tensors)
    config = {"model_type": model_type, "num_hidden_layers": LAYERS, "rescale_every": 0}
    (directory / "config.json").write_text(json.dumps(config))
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(directory)}, "steps": list(steps)})
    return fold(draft_of(read_structure(open_checkpoint(directory))), recipe.steps)


def _sources(plan: Plan, model_type: str) -> dict[int, str | float]:
    """Return where the tensor of some layers comes from, by position: another layer's name, or a constant."""
    prefix, _, some, _ = _ENDS[model_type]
    found: dict[int, str | float] = {}
    for tensor in plan.tensors:
        if tensor.name.endswith(some):
            position = int(tensor.name.removeprefix(f"{prefix}.").partition(".")[0])
            if isinstance(tensor.source, Fill):
                found[position] = tensor.source.value
            else:
                assert isinstance(tensor.source, Copy)
                found[position] = tensor.source.tensor.name.removeprefix(f"{prefix}.").partition(".")[0]
    return found


@pytest.mark.parametrize(
    ("model_type", "step", "expected"),
    [
        # A bias of 0 is as good as none.
        ("gpt_neox_japanese", {"prune": {"layers": [3]}}, {2: 0.0}),
        ("gpt_neox_japanese", {"prune": {"layers": [0]}}, {2: "3"}),
        # Without the states of the router before, their scale says nothing; 0 takes none of them.
        ("zaya", {"prune": {"layers": [0]}}, {1: "2", 2: "3"}),
        ("zaya", {"reorder": {"order": [1, 0, 2, 3]}}, {1: 0.0, 2: "2", 3: "3"}),
        # An identity is one with whatever norm in front of its silenced matrices, and without one.
        ("modernbert-decoder", {"expand": {"after": [0], "init": "copy"}}, {1: 1.0, 2: "1", 3: "2", 4: "3"}),
        ("rwkv", {"expand": {"after": [0], "init": "copy"}}, {0: "0"}),
    ],
)
def test_a_layer_that_comes_to_another_place_is_built_as_that_place_wants(
    model_type: str, step: dict[str, Any], expected: dict[int, str | float], tmp_path: Path
) -> None:
    """With a constant that changes nothing, or without a tensor that says nothing there."""
    assert _sources(_plan(model_type, tmp_path / "base", step), model_type) == expected


@pytest.mark.parametrize(
    ("model_type", "step"),
    [
        ("gpt_neox_japanese", {"expand": {"after": [3], "init": "duplicate"}}),
        ("modernbert-decoder", {"prune": {"layers": [0]}}),
        ("modernbert-decoder", {"expand": {"after": [0], "init": "duplicate"}}),
        ("rwkv", {"prune": {"layers": [0]}}),
        ("rwkv", {"reorder": {"order": [1, 0, 2, 3]}}),
        ("rwkv", {"expand": {"after": [0], "init": "duplicate"}}),
    ],
)
def test_a_layer_that_would_not_be_the_same_there_is_refused(
    model_type: str, step: dict[str, Any], tmp_path: Path
) -> None:
    """A norm or a bias that acts cannot be left out, and a missing one not be put in."""
    with pytest.raises(ArchitectureError, match=r"only the|all layers but"):
        _plan(model_type, tmp_path / "base", step)


def test_an_identity_in_front_of_all_others_is_refused_where_the_first_layer_acts_outside_of_it(
    tmp_path: Path,
) -> None:
    """RWKV normalises the embeddings in its first layer: there, no layer passes its input through."""
    with pytest.raises(ArchitectureError, match=r"only the first layer .* position 0"):
        _plan("rwkv", tmp_path / "base", {"expand": {"after": [0], "init": "copy"}}, {"prune": {"layers": [0]}})


_ZAMBA = {"0": "linear_attention", "1": "hybrid", "2": "hybrid", "3": "linear_attention"}


def _zamba(directory: Path, *steps: dict[str, Any], holders: str = "1") -> dict[str, str]:
    """Return where the shared block and each layer's own matrix come from, by their names in the result."""
    names = [f"model.layers.{layer}.mamba.out_proj.weight" for layer in _ZAMBA]
    names += [f"model.layers.{layer}.linear.weight" for layer, kind in _ZAMBA.items() if kind == "hybrid"]
    names += [f"model.layers.{layer}.shared_transf.feed_forward.down_proj.weight" for layer in holders]
    directory.mkdir()
    write_shard(directory / "model.safetensors", {name: random_tensor((4, 4), "F32", name) for name in names})
    config = {"model_type": "zamba", "num_hidden_layers": LAYERS, "layers_block_type": list(_ZAMBA.values())}
    (directory / "config.json").write_text(json.dumps(config))
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(directory)}, "steps": list(steps)})
    plan = compile_plan(fold(draft_of(read_structure(open_checkpoint(directory))), recipe.steps))
    return {tensor.name: tensor.source.tensor.name for tensor in plan.tensors if isinstance(tensor.source, Copy)}


@pytest.mark.parametrize(
    ("steps", "holder"),
    [
        ([{"prune": {"layers": [1]}}], 1),
        ([{"reorder": {"order": [2, 0, 1, 3]}}], 0),
        ([{"expand": {"after": [1], "init": "duplicate"}}], 1),
        ([{"prune": {"layers": [0, 3]}}], 0),
    ],
)
def test_a_shared_block_lies_with_the_first_of_the_layers_that_use_it(
    steps: list[dict[str, Any]], holder: int, tmp_path: Path
) -> None:
    """Whichever that is; the others find it there."""
    held = {made: source for made, source in _zamba(tmp_path / "base", *steps).items() if "shared_transf" in made}

    block = "shared_transf.feed_forward.down_proj.weight"
    assert held == {f"model.layers.{holder}.{block}": f"model.layers.1.{block}"}


def test_a_block_that_every_layer_stores_for_itself_stays_with_it(tmp_path: Path) -> None:
    """They may differ where the config ties nothing."""
    found = _zamba(tmp_path / "base", {"prune": {"layers": [0]}}, holders="12")
    block = "shared_transf.feed_forward.down_proj.weight"

    assert {made: source for made, source in found.items() if block in made} == {
        f"model.layers.0.{block}": f"model.layers.1.{block}",
        f"model.layers.1.{block}": f"model.layers.2.{block}",
    }


def test_an_identity_that_was_trained_is_none_any_more(tmp_path: Path) -> None:
    """What it lacked while it was trained would act now."""
    draft = _draft("modernbert-decoder", tmp_path / "base", {"expand": {"after": [0], "init": "copy"}})
    layers = draft.layers()
    trained = replace(layers[1], source=Learned(layers[1].source, "0" * 16, layers[1].key))

    with pytest.raises(ArchitectureError, match="attn_norm"):
        compile_plan(draft.with_layers((layers[0], trained, *layers[2:])))
