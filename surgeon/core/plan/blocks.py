"""Which layers of a draft are changed against the base, and which of the base's layers each one stands for."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.core.plan.draft import Draft, Layer, Original, Source
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


def blocks_of(draft: Draft) -> list[Block]:
    """Return the blocks of the default stack, in order.

    Raises:
        RecipeError: layers are in another order than the base's, so that they come to no hidden state of it.
    """
    layers, count = draft.layers(), len(draft.structure.stack().layers)
    kept = [(at, layer.original) for at, layer in enumerate(layers) if layer.original is not None]
    originals = [original for _, original in kept]
    if not originals or originals != sorted(originals):
        raise RecipeError(
            "layers are not in the base's order, and a layer elsewhere has no hidden state of the base to learn",
            where="objective", allowed="lm, distill", hint="leave reorder out, or train with another objective",
        )  # fmt: skip
    ends = dict(zip([at for at, _ in kept], [*originals[1:], count], strict=True))
    blocks, start = [], 0
    for position, layer in enumerate(layers):
        end = ends.get(position, start)
        base = tuple(range(start, end))
        plain = layer.source == Original(layer.original) if layer.original is not None else True
        like = layer.original if layer.original is not None else _like(layer.source)
        blocks.append(Block(position, layer, base, like, changed=bool(base) and not (plain and len(base) == 1)))
        start = end
    return blocks


def _like(source: Source) -> int:
    """Return the first layer of the base that a source is made of."""
    while not isinstance(source, Original):
        parts = getattr(source, "parts", None)
        source = parts[0] if parts else source.of  # type: ignore[union-attr]
    return source.index
