"""Layers that are built alike have one layout, however they are spread over shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.structure.structure import Structure
from tests.architectures.families import FAMILIES, HandMade
from tests.export.handmade_shards import llama_tensors, random_tensor, write_config, write_llama, write_weights


def structure_of(directory: Path) -> Structure:
    return read_structure(open_checkpoint(directory))


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_layers_built_alike_have_one_layout(shards: int, tmp_path: Path) -> None:
    """Whether or not a layer is cut between two shards."""
    stack = structure_of(write_llama(tmp_path / "base", layers=6, shards=shards)).stack()
    (layout,) = stack.layouts
    assert all(layer.layout is layout for layer in stack.layers)
    assert list(layout.types) == [
        name.removeprefix("model.layers.0.") for name in llama_tensors(1) if name.startswith("model.layers.0.")
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_layer_is_the_checkpoints_tensors_under_their_short_names(family: HandMade, tmp_path: Path) -> None:
    """And with those outside it is all of them, each once; sums are the same either way."""
    structure = structure_of(family.write(tmp_path / "base"))
    stored = structure.checkpoint.tensors
    seen = list(structure.outside)
    for stack in structure.stacks.values():
        for number, layer in enumerate((*stack.layers, *stack.tail)):
            assert {stack.tensor_name(number, suffix): tensor for suffix, tensor in layer.items()} == {
                name: tensor for name, tensor in stored.items() if name.startswith(f"{stack.prefix}.{number}.")
            }
            assert layer.layout.parameters == sum(tensor.parameters for tensor in layer.values())
            assert layer.layout.nbytes == sum(tensor.nbytes for tensor in layer.values())
            assert len(layer) == len(dict(layer))
            assert structure.roles_of(layer.layout) == {suffix: structure.role(suffix) for suffix in layer}
            seen += [stack.tensor_name(number, suffix) for suffix in layer]
    assert sorted(seen) == sorted(stored)
    assert list(structure.outside) == [name for name in stored if name in structure.outside]
    assert structure.checkpoint.parameters == sum(tensor.parameters for tensor in stored.values())
    assert structure.checkpoint.nbytes == sum(tensor.nbytes for tensor in stored.values())


def test_another_order_or_dtype_is_another_layout(tmp_path: Path) -> None:
    """An index of tensors, not a set: what is written follows it."""
    tensors = llama_tensors(3)
    first = "model.layers.1.input_layernorm.weight"
    tensors[first] = tensors.pop(first)
    tensors["model.layers.2.mlp.up_proj.weight"] = random_tensor((12, 8), "F32")
    tmp_path.joinpath("base").mkdir()
    write_config(tmp_path / "base", 3)
    write_weights(tmp_path / "base", tensors)
    stack = structure_of(tmp_path / "base").stack()
    assert len(stack.layouts) == 3
    assert stack.layouts[2].dtype_parameters == {"BF16": stack.layouts[0].parameters - 96, "F32": 96}


def test_a_number_with_a_zero_before_it_is_no_other_spelling(tmp_path: Path) -> None:
    """Else two tensors would have one name in the layer."""
    tensors = llama_tensors(2)
    stray = "model.layers.01.mlp.up_proj.weight"
    tensors[stray] = random_tensor((12, 8))
    tmp_path.joinpath("base").mkdir()
    write_config(tmp_path / "base", 2)
    write_weights(tmp_path / "base", tensors)
    structure = structure_of(tmp_path / "base")
    assert stray in structure.outside
    assert structure.stack().layers[1]["mlp.up_proj.weight"].name == "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("suffix", ["mlp.experts.{}.gate_proj.weight", "experts.{}.down_proj.bias", "x.experts.{}.w1"])
def test_which_expert_it_is_changes_no_role(suffix: str, tmp_path: Path) -> None:
    """Roles are looked up for one expert and hold for all."""
    structure = structure_of(write_llama(tmp_path / "base"))
    numbers = (0, 1, 7, 10, 255)
    by_rule = {
        next((role for pattern, role in structure.role_rules if pattern.fullmatch(suffix.format(number))), "other")
        for number in numbers
    }
    assert {structure.role(suffix.format(number)) for number in numbers} == by_rule
    assert len(by_rule) == 1
