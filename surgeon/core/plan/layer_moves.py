"""Where the layers of the base have gone: names of layers in the config, and which of them each layer stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.core.plan.draft import Draft, Grafted, Layer, Original, leaf
from surgeon.core.structure.config_layer_names import LayerNames
from surgeon.core.structure.layer_runs import Moves
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import RecipeError


@dataclass(frozen=True)
class Block:
    """A layer and the base's layers that it stands for: its own, and the removed ones behind it.

    The first layer stands for removed ones in front of it too, an inserted layer for none.
    like: the layer of the base whose way of being called is its own.   changed: whether it has something to learn.
    """

    position: int
    layer: Layer
    base: tuple[int, ...]
    like: int
    changed: bool


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


def blocks_of(draft: Draft) -> list[Block]:
    """Return the blocks of the default stack, in order.

    Raises:
        RecipeError: layers are in another order than the base's, so that they come to no hidden state of it.
    """
    stack, layers = draft.structure.stack(), draft.layers()
    kept = [(at, layer.original) for at, layer in enumerate(layers) if layer.original is not None]
    originals = [original for _, original in kept]
    if not originals or originals != sorted(originals):
        raise RecipeError(
            "layers are not in the base's order, and a layer elsewhere has no hidden state of the base to learn",
            where="objective", allowed="lm, distill", hint="leave reorder out, or train with another objective",
        )  # fmt: skip
    ends = dict(zip([at for at, _ in kept], [*originals[1:], len(stack.layers)], strict=True))
    blocks, start = [], 0
    for position, layer in enumerate(layers):
        end = ends.get(position, start)
        base = tuple(range(start, end))
        plain = layer.source == Original(layer.original) if layer.original is not None else True
        like = layer.original if layer.original is not None else _base_layer(layer, stack)
        blocks.append(Block(position, layer, base, like, changed=bool(base) and not (plain and len(base) == 1)))
        start = end
    return blocks
