"""Tensors that one layer has and its like lack: told from names alone, where transformers cannot be asked.

They are gaps, or lie in the shards though no index lists them, and only look like parts of a layer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.weight_files import listed, without
from surgeon.core.structure.companions import plain_name
from surgeon.core.structure.layer_dependencies import UnexplainedDifference
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError

_IN_A_LAYER = re.compile(r"(.*?)\.(\d+)\.(.*)", re.DOTALL)


def read_listed(checkpoint: Checkpoint, read: Callable[[Checkpoint], Structure]) -> Structure:
    """Read a checkpoint's structure; where unlisted tensors are in the way, as if they were not there.

    transformers reads them too, and needs them, or takes them for no part of the model.

    Raises:
        ArchitectureError: as `read` does.
    """
    odd = _odd_tensors(checkpoint)
    try:
        structure = read(checkpoint)
    except ArchitectureError:
        if not odd:
            raise
    else:
        if not odd or not _differs_unexplained(structure):
            return structure
    shards = tuple(part for shard in checkpoint.shards for part in without(shard, odd))
    note = f"left out, since the index does not list them and no other layer has their like: {listed(sorted(odd))}"
    structure = read(replace(checkpoint, shards=shards))
    return replace(structure, checkpoint=checkpoint, problems=(*structure.problems, note))


def _odd_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the unlisted tensors whose like no other layer has."""
    if not checkpoint.unlisted:
        return frozenset()
    holders: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for name in checkpoint.tensors:
        if match := _IN_A_LAYER.fullmatch(name):
            holders[match[1], match[3]].add(match[2])
    unlisted = {name: match for name in checkpoint.unlisted if (match := _IN_A_LAYER.fullmatch(name))}
    return frozenset(name for name, match in unlisted.items() if holders[match[1], match[3]] == {match[2]})


def _differs_unexplained(structure: Structure) -> bool:
    fields = (field for stack in structure.stacks.values() for field in stack.fields)
    return any(isinstance(field, UnexplainedDifference) for field in fields)


def first_gap(structure: Structure) -> str:
    """Say which tensor a layer lacks that another has; empty if there is none.

    The config says the same of both, and but for such tensors they are built alike.
    """
    return next(filter(None, map(_gap, structure.stacks.values())), "")


def _gap(stack: Stack) -> str:
    unexplained = {field.key for field in stack.fields if isinstance(field, UnexplainedDifference)}
    alike: dict[str, dict[Layout, int]] = {}
    for number, (layer, setting) in enumerate(zip(stack.layers, stack.settings, strict=True)):
        said = repr({key: value for key, value in setting.items() if key not in unexplained})
        alike.setdefault(said, {}).setdefault(layer.layout, number)
    for layouts in alike.values():
        for poor, number in layouts.items():
            # Weights, not what stands beside those that are quantised: some layers may be left unquantised.
            own = set(map(plain_name, poor.types))
            for rich, other in layouts.items():
                if own < set(map(plain_name, rich.types)):
                    lost = next(suffix for suffix in rich.types if plain_name(suffix) not in own)
                    return f"{stack.tensor_name(number, lost)}, which layer {other} has"
    return ""
