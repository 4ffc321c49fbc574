from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgeon.architectures.reading import read_structure
from surgeon.core.checkpoint import open_checkpoint
from surgeon.core.draft import Draft, Learned, draft_of
from surgeon.core.expressions import Copy, Fill
from surgeon.core.fold import fold
from surgeon.core.plan import Plan, compile_plan
from surgeon.core.recipe import recipe_from_builtins
from surgeon.errors import ArchitectureError
from tests.export.handmade import random_tensor, write_shard

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


def test_an_identity_that_was_trained_is_none_any_more(tmp_path: Path) -> None:
    """What it lacked while it was trained would act now."""
    draft = _draft("modernbert-decoder", tmp_path / "base", {"expand": {"after": [0], "init": "copy"}})
    layers = draft.layers()
    trained = replace(layers[1], source=Learned(layers[1].source, "0" * 16, layers[1].key))

    with pytest.raises(ArchitectureError, match="attn_norm"):
        compile_plan(draft.with_layers((layers[0], trained, *layers[2:])))
