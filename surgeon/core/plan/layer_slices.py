"""Tensors outside the layers that hold one slice for each layer, such as Gemma's embeddings of every layer.

Their slices go where the layers go: they are left out, repeated and reordered, and averaged where a layer is a mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from surgeon.core.checkpoint.dtypes import BITS, FLOATS
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.plan.draft import Draft, Grafted, Mean, Original, Source
from surgeon.core.structure.structure import OutsideSlices
from surgeon.errors import ArchitectureError


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices of a stored tensor, one after another along `axis`, each `width` wide.

    sources: for each slice the layer that it is of: Original, or Mean of several.
    """

    tensor: Tensor
    axis: int
    width: int
    sources: tuple[Source, ...]

    @property
    def averaged(self) -> bool:
        """Whether any slice is calculated rather than copied."""
        return any(isinstance(source, Mean) for source in self.sources)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what comes out."""
        shape = self.tensor.shape
        return (*shape[: self.axis], self.width * len(self.sources), *shape[self.axis + 1 :])

    @property
    def rows(self) -> int:
        """How many times the spans repeat in the stored tensor: the product of the dimensions before `axis`."""
        return math.prod(self.tensor.shape[: self.axis])

    @property
    def row_bytes(self) -> int:
        """How many bytes of the stored tensor lie between one row's beginning and the next."""
        return self.tensor.nbytes // self.rows

    def spans(self) -> list[tuple[int, int]]:
        """Return the bytes [start, stop) of a stored row that make up a row of the result, adjacent ones as one."""
        width = self.width * math.prod(self.tensor.shape[self.axis + 1 :]) * BITS[self.tensor.dtype] // 8
        found: list[tuple[int, int]] = []
        for source in self.sources:
            assert isinstance(source, Original), "a mean is calculated, not copied"
            start, stop = source.index * width, (source.index + 1) * width
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, stop))
        return found


def sliced(draft: Draft) -> Iterator[tuple[str, Slices]]:
    """Yield the tensors outside the layers that change with them, by name.

    Raises:
        ArchitectureError: one is not cut as its rule says, or cannot be, for its dtype.
    """
    structure = draft.structure
    if not structure.sliced:
        return
    stack = structure.stack()
    sources = tuple(_weights(layer.source) for layer in draft.layers())
    if list(sources) == [Original(index) for index in range(len(stack.layers))]:
        return
    for name, rule in structure.sliced.items():
        tensor = structure.outside[name]
        yield name, Slices(tensor, rule.axis, _width(name, tensor, rule, draft), sources)


def _weights(source: Source) -> Source:
    """Return the layers that a slice is made of: what was done to matrices within the layer is nothing to it."""
    if isinstance(source, Mean):
        parts = tuple(map(_weights, source.parts))
        return parts[0] if all(part == parts[0] for part in parts) else Mean(parts)
    assert not isinstance(source, Grafted), "layers of other models are refused where there are slices"
    return source if isinstance(source, Original) else _weights(source.of)


def _width(name: str, tensor: Tensor, rule: OutsideSlices, draft: Draft) -> int:
    stack = draft.structure.stack()
    width = draft.structure.stack_config(stack).get(rule.width_key)
    count = len(stack.layers)
    whole = tensor.shape[rule.axis] if tensor.dtype in FLOATS and len(tensor.shape) > rule.axis else None
    if not isinstance(width, int) or whole != count * width:
        raise ArchitectureError(
            f"holds one slice for each layer, and {tensor.dtype} {list(tensor.shape)} cannot be cut into {count}",
            where=f"tensor {name!r}",
            allowed=f"{', '.join(FLOATS)} with {rule.width_key} × {count} entries along dimension {rule.axis}",
            hint="dequantise the checkpoint first",
        )
    return width
