"""What is known of stored tensors: the columns of a shard's header, and single tensors where one is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec

from surgeon.core.checkpoint.dtypes import BITS


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One stored tensor. `start` and `end` are byte offsets in the file at `shard`, not in its data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.start

    @property
    def parameters(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class TensorType(msgspec.Struct, frozen=True, eq=False):
    """A dtype and a shape: one object, made by `tensor_type`, for all tensors that have both."""

    dtype: str
    shape: tuple[int, ...]
    parameters: int
    nbytes: int


@cache
def tensor_type(dtype: str, shape: tuple[int, ...]) -> TensorType:
    """Return the type of a tensor.

    Raises:
        KeyError: there is no such dtype.   ValueError: a size is negative, or the bits do not make whole bytes.
    """
    parameters = 1
    for size in shape:
        if size < 0:
            raise ValueError(f"negative size in {shape}")
        parameters *= size
    nbytes, rest = divmod(parameters * BITS[dtype], 8)
    if rest:
        raise ValueError(f"{dtype} {shape} ends within a byte")
    return TensorType(dtype, shape, parameters, nbytes)


class Shard(msgspec.Struct, frozen=True, dict=True):
    """A file of tensors that follow each other without a gap from byte `start` to its end.

    Kept in columns: models have tens of thousands of tensors and few types, and most are never asked for one by one.
    """

    path: Path
    names: Sequence[str]
    types: Sequence[TensorType]
    start: int
    metadata: dict[str, str]

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors in the order of their bytes."""
        bounds = pairwise(accumulate((one.nbytes for one in self.types), initial=self.start))
        return tuple(
            Tensor(name, one.dtype, one.shape, self.path, start, end)
            for name, one, (start, end) in zip(self.names, self.types, bounds, strict=True)
        )
