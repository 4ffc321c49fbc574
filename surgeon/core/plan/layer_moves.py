"""Where the layers of the base have gone, and the names of layers in the config written accordingly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surgeon.core.plan.draft import Draft, Grafted, Layer, leaf
from surgeon.core.structure.config_layer_names import LayerNames
from surgeon.core.structure.layer_runs import Moves
from surgeon.core.structure.structure import Stack, Structure


def moves_of(draft: Draft) -> dict[str, Moves]:
    """Return where the layers of each stack have gone; an inserted one is named as the layer whose shapes it has."""
    stacks = {name: (draft.structure.stacks[name], layers) for name, layers in draft.stacks.items()}
    return {
        name: Moves(tuple(_base_layer(layer, stack) for layer in layers), len(stack.layers))
        for name, (stack, layers) in stacks.items()
    }


def _base_layer(layer: Layer, stack: Stack) -> int:
    stored = leaf(layer.source)
    return stack.donors[stored.donor].twins[stored.index] if isinstance(stored, Grafted) else stored.index


def with_names(config: Mapping[str, Any], draft: Draft) -> dict[str, Any]:
    """Return a config in which every name of a layer is that of its place in the draft.

    Raises:
        ArchitectureError: an entry cannot say it.
    """
    renamed: dict[str, Any] = config_names(draft.structure).renamed(config, moves_of(draft))
    return renamed


def config_names(structure: Structure) -> LayerNames:
    """Return what finds the names of layers in the config, but for what per-layer fields say."""
    return LayerNames("config.json", structure.runs, config=True, told=frozenset(_told(structure)))


def _told(structure: Structure) -> Iterator[tuple[str, ...]]:
    for stack in structure.stacks.values():
        for field in stack.fields:
            yield from ((*stack.config_path, key) for key in (field.key, *field.replaces))
        for twin in stack.twins:
            for field in twin.fields:
                yield from ((*twin.path, key) for key in (field.key, *field.replaces))
