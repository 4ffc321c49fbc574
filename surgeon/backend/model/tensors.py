"""Stored tensors as torch tensors, one at a time, and the arithmetic that a plan asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from surgeon.backend.model.matrices import truncate
from surgeon.core.checkpoint.checkpoint import Tensor
from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.checkpoint.file_stamps import shortened, unreadable
from surgeon.core.checkpoint.tensors import TensorType
from surgeon.core.parts.division import Runs
from surgeon.core.plan.expressions import Copy, Expression, Fill, JoinedOf, LearnedOf, PartOf, TruncatedOf
from surgeon.core.plan.plan import PlannedTensor
from surgeon.errors import ArchitectureError, LearningError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    **({"F8_E8M0": torch.float8_e8m0fnu} if hasattr(torch, "float8_e8m0fnu") else {}),
}  # fmt: skip


class TensorReader:
    """Reads tensors by byte range; keeps shards open, never more than the asked tensor in memory."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._handles: dict[Path, int] = {}

    def read(self, stored: Tensor) -> torch.Tensor:
        """Return one stored tensor in its own dtype and shape.

        Raises:
            ArchitectureError: torch has no such dtype.   CheckpointError: its file cannot be read any more.
        """
        if stored.dtype not in DTYPES:
            raise ArchitectureError(
                f"has dtype {stored.dtype}, which cannot be calculated with",
                where=stored.name,
                allowed=", ".join(DTYPES),
            )
        value = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        self.read_into(stored, value)
        return value

    def read_into(self, stored: Tensor, value: torch.Tensor) -> None:
        """Read a stored tensor into a contiguous one on the CPU of its dtype and shape.

        Raises:
            CheckpointError: its file cannot be read any more.
        """
        if not stored.nbytes:
            return
        view, position = memoryview(value.view(-1).view(torch.uint8).numpy()), stored.start  # type: ignore[arg-type]
        while view:
            try:
                count = os.preadv(self._handle(stored.shard), [view], position)
            except OSError as error:
                raise unreadable(stored.shard, error) from error
            if not count:
                raise shortened(stored.shard)
            view, position = view[count:], position + count

    def announce(self, stored: Sequence[Tensor]) -> None:
        """Have the system begin to read tensors that are asked for soon, where it knows how."""
        if hasattr(os, "posix_fadvise"):
            for one in stored:
                os.posix_fadvise(self._handle(one.shard), one.start, one.nbytes, os.POSIX_FADV_WILLNEED)

    def _handle(self, shard: Path) -> int:
        if shard not in self._handles:
            self._handles[shard] = _opened(shard)
        return self._handles[shard]

    def evaluate(self, expression: Expression, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Calculate an expression of that dtype and shape."""
        return calculated(expression, dtype, shape, self.read)

    def bytes_of(self, tensor: PlannedTensor) -> bytes:
        """Calculate a planned tensor and return its little-endian bytes."""
        value = self.evaluate(tensor.source, tensor.dtype, tensor.shape).contiguous()
        return (
            value.view(torch.uint8).numpy().tobytes()
            if value.dim()
            else value.reshape(1).view(torch.uint8).numpy().tobytes()
        )

    def close(self) -> None:
        """Close the shards."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def _opened(shard: Path) -> int:
    try:
        return os.open(shard, os.O_RDONLY)
    except OSError as error:
        raise unreadable(shard, error) from error


@contextmanager
def tensor_reader() -> Iterator[TensorReader]:
    """Yield a reader and close it."""
    reader = TensorReader()
    try:
        yield reader
    finally:
        reader.close()


def calculated(
    expression: Expression, dtype: str, shape: tuple[int, ...], read: Callable[[Tensor], torch.Tensor]
) -> torch.Tensor:
    """Calculate an expression of that dtype and shape; `read` gives what is stored.

    A mean is taken in float32 (float64 for float64) and rounded once.

    Raises:
        LearningError: it stands for what a learned step has not found yet.
    """
    if isinstance(expression, Copy):
        return read(expression.tensor)
    if isinstance(expression, Fill):
        return torch.full(shape, expression.value, dtype=DTYPES[dtype])
    if isinstance(expression, PartOf):
        return kept_spans(calculated(expression.of, dtype, expression.whole, read), expression.axis, expression.runs)
    if isinstance(expression, TruncatedOf):
        weight = calculated(expression.of, dtype, shape, read).clone()
        truncate(weight, expression.pieces, expression.how)
        return weight
    if isinstance(expression, LearnedOf):
        raise LearningError("has not been learned yet", where=expression.address, hint="run the recipe's steps first")
    parts = [calculated(part, dtype, shape, read) for part in expression.parts]
    return torch.cat(parts, expression.axis) if isinstance(expression, JoinedOf) else mean_of(parts)


def mean_of(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the element-wise mean, taken in float32 (float64 for float64), rounded once to the dtype of the first."""
    dtype = parts[0].dtype
    total = parts[0].to(torch.float64 if dtype is torch.float64 else torch.float32, copy=True)
    for part in parts[1:]:
        total += part.to(total.dtype)
    return (total / len(parts)).to(dtype)


def kept_spans(value: torch.Tensor, axis: int, runs: Runs) -> torch.Tensor:
    """Return the spans of a tensor along one dimension, one after another."""
    if len(runs) == 1:
        start, stop = runs[0]
        return value.narrow(axis, start, stop - start)
    index = torch.cat([torch.arange(start, stop) for start, stop in runs]).to(value.device)
    if value.dtype.itemsize == 1:  # torch gathers no 8-bit floats
        return value.view(torch.uint8).index_select(axis, index).view(value.dtype)
    return value.index_select(axis, index)


def is_matrix(stored: Tensor | TensorType) -> bool:
    """Whether a stored tensor is a weight matrix, or a stack of them, that scores look at."""
    return len(stored.shape) > 1 and stored.dtype in FLOATS
