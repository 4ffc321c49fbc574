"""How the tensors of a layer are divided into parts of one kind: pure arithmetic on names and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from surgeon.core.structure.layouts import Layout
from surgeon.errors import ArchitectureError

PartKind = Literal["experts", "neurons", "heads"]
PART_KINDS: tuple[PartKind, ...] = ("experts", "neurons", "heads")

Runs = tuple[tuple[int, int], ...]
"""Spans [start, stop) along a dimension, one after another."""


class Cut(msgspec.Struct, frozen=True):
    """How a tensor is divided along one dimension.

    widths: how wide one part's slice is, for each row of slices along the dimension: gate and up in one matrix are two.
    """

    axis: int
    widths: tuple[int, ...] = (1,)

    def length(self, count: int) -> int:
        """Return the size of the dimension with so many parts."""
        return count * sum(self.widths)

    def runs(self, count: int, kept: Sequence[int]) -> Runs:
        """Return the spans that some of `count` parts take up, in their order; adjacent ones are one span."""
        found: list[tuple[int, int]] = []
        for start, stop in self._spans(count, kept):
            begin = found.pop()[0] if found and found[-1][1] == start else start
            found.append((begin, stop))
        return tuple(found)

    def _spans(self, count: int, kept: Sequence[int]) -> Iterator[tuple[int, int]]:
        offset = 0
        for width in self.widths:
            for number in kept:
                yield offset + number * width, offset + (number + 1) * width
            offset += count * width


class Division(msgspec.Struct, frozen=True):
    """A layer as parts of one kind.

    cuts: how the tensors are divided that hold all parts, by name within the layer.
    owners: the part that a tensor is of alone, by name; its number stands in the name.
    """

    kind: PartKind
    count: int
    cuts: Mapping[str, Cut]
    owners: Mapping[str, int]

    def names(self, layout: Layout, kept: Sequence[int]) -> dict[str, str]:
        """Return the tensors of a layer of which only some parts are kept: new name to the one it has now."""
        place = {number: position for position, number in enumerate(kept)}
        found: dict[str, str] = {}
        for name in layout.types:
            owner = self.owners.get(name)
            if owner is None:
                found[name] = name
            elif owner in place:
                found[renumbered(name, place[owner])] = name
        return found

    def shape(self, name: str, shape: tuple[int, ...], kept: int) -> tuple[int, ...]:
        """Return the shape that a tensor has with so many parts."""
        cut = self.cuts.get(name)
        if cut is None:
            return shape
        return (*shape[: cut.axis], cut.length(kept), *shape[cut.axis + 1 :])


def renumbered(name: str, number: int) -> str:
    """Return the name of the same tensor of another expert."""
    before, _, behind = name.rpartition("experts.")
    return f"{before}experts.{number}.{behind.partition('.')[2]}"


def cannot_cut(kind: PartKind, name: str, why: str, hint: str = "") -> ArchitectureError:
    """Return the refusal to cut a layer into parts because of one of its tensors."""
    return ArchitectureError(
        f"{why}, so the {kind} cannot be told apart",
        where=f"tensor {name!r}",
        allowed="tensors of which each slice belongs to one of them, or to none",
        hint=hint or "this layer can be removed, not cut",
    )
