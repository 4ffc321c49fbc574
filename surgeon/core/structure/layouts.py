"""The tensors of layers, and how layers are built: told once for all that are built alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import msgspec

from surgeon.core.checkpoint.tensors import Shard, Tensor, TensorType


class Layout(msgspec.Struct, frozen=True, eq=False, dict=True, weakref=True):
    """How a layer is built: the types of its tensors by their names within it, in their order.

    Layers built alike have the same one, so it is compared by identity, and what follows from names, dtypes and
    shapes is found out once for all of them.
    """

    types: Mapping[str, TensorType]

    @cached_property
    def dtype_parameters(self) -> Mapping[str, int]:
        """Stored elements of each dtype, in the order in which the dtypes occur."""
        found: dict[str, int] = {}
        for one in self.types.values():
            found[one.dtype] = found.get(one.dtype, 0) + one.parameters
        return found

    @cached_property
    def parameters(self) -> int:
        """Stored elements."""
        return sum(one.parameters for one in self.types.values())

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(one.nbytes for one in self.types.values())


class Run(msgspec.Struct, frozen=True):
    """Tensors of one layer, or of none, that follow each other in a shard: `first` to `end`, exclusive.

    prefix: what stands before their names within the layer.
    """

    shard: Shard
    first: int
    end: int
    prefix: str = ""

    @property
    def types(self) -> Sequence[TensorType]:
        """The types of the tensors."""
        return self.shard.types[self.first : self.end]

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The tensors."""
        return self.shard.tensors[self.first : self.end]

    def suffixes(self) -> list[str]:
        """Return the names within the layer."""
        length = len(self.prefix)
        return [name[length:] for name in self.shard.names[self.first : self.end]]


class LayerTensors(Mapping[str, Tensor]):
    """The tensors of a layer by their names within it; made of the shards' columns once one is asked for."""

    def __init__(self, layout: Layout, runs: Sequence[Run]) -> None:
        self.layout, self._runs = layout, runs

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        found = (tensor for run in self._runs for tensor in run.tensors)
        return dict(zip(self.layout.types, found, strict=True))

    def __getitem__(self, suffix: str) -> Tensor:
        return self._tensors[suffix]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.types)

    def __len__(self) -> int:
        return len(self.layout.types)


def layers_of(layers: Iterable[Sequence[Run]]) -> tuple[LayerTensors, ...]:
    """Return the layers that consist of these runs; those that are built alike have the same layout."""
    known: list[tuple[list[str], list[TensorType], Layout]] = []
    found = []
    for runs in layers:
        names = [name for run in runs for name in run.suffixes()]
        types = [one for run in runs for one in run.types]
        # Compared rather than hashed: a layer is mostly built as the one before it.
        layout = next((one for suffixes, kinds, one in reversed(known) if suffixes == names and kinds == types), None)
        if layout is None:
            layout = Layout(dict(zip(names, types, strict=True)))
            known.append((names, types, layout))
        found.append(LayerTensors(layout, runs))
    return tuple(found)
