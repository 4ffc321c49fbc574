"""Where the bytes of a part of a stored tensor lie, and whether moving them one by one is a way to go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from surgeon.core.checkpoint.dtypes import BITS, FLOATS
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.parts.division import Runs
from surgeon.core.plan.expressions import Copy, Expression, JoinedOf, MeanOf, PartOf, TruncatedOf

_MOST_PIECES = 2**16
_SHORT_BYTES = 256


@dataclass(frozen=True)
class StoredPart:
    """The spans of a stored tensor that are kept, by dimension; a dimension that is not named is kept whole.

    Seen as rows: everything before the last dimension that is cut counts rows, of which some are left, and of each the
    same spans of bytes.
    """

    tensor: Tensor
    kept: dict[int, Runs]

    @property
    def _axis(self) -> int:
        return max(self.kept)

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return self._bytes(math.prod(self.tensor.shape[self._axis :]))

    def spans(self) -> list[tuple[int, int]]:
        """Return the bytes [start, stop) of a row that are kept, in order."""
        inner = math.prod(self.tensor.shape[self._axis + 1 :])
        return [(self._bytes(start * inner), self._bytes(stop * inner)) for start, stop in self.kept[self._axis]]

    def rows(self) -> Iterator[tuple[int, int]]:
        """Yield the rows [first, end) that are left, in order, adjacent ones together."""
        shape = self.tensor.shape[: self._axis]
        last = max((axis for axis in self.kept if axis < self._axis), default=None)
        if last is None:
            yield 0, math.prod(shape)
            return
        below = math.prod(shape[last + 1 :])
        outer = [_numbers(self.kept.get(axis, ((0, shape[axis]),))) for axis in range(last)]
        for place in product(*outer):
            start = 0
            for axis, number in enumerate(place):
                start = start * shape[axis] + number
            for first, end in self.kept[last]:
                yield (start * shape[last] + first) * below, (start * shape[last] + end) * below

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield where in the file the kept bytes lie, [start, end), in order."""
        spans, size = self.spans(), self.row_bytes
        for first, end in self.rows():
            for row in range(self.tensor.start + first * size, self.tensor.start + end * size, size):
                yield from ((row + start, row + stop) for start, stop in spans)

    @property
    def nbytes(self) -> int:
        """Kept bytes."""
        return sum(end - first for first, end in self.rows()) * sum(stop - start for start, stop in self.spans())

    @property
    def pieces(self) -> int:
        """How many pieces of bytes that do not follow each other are kept."""
        return sum(end - first for first, end in self.rows()) * len(self.kept[self._axis])

    def _bytes(self, elements: int) -> int:
        return elements * BITS[self.tensor.dtype] // 8


def _numbers(runs: Runs) -> list[int]:
    return [number for start, stop in runs for number in range(start, stop)]


def stored_part(part: PartOf) -> StoredPart | None:
    """Return the bytes of a part of a stored tensor, however often it was cut; None where it is of anything else."""
    if isinstance(part.of, Copy):
        return StoredPart(part.of.tensor, {part.axis: part.runs})
    inner = stored_part(part.of) if isinstance(part.of, PartOf) else None
    if inner is None:
        return None
    before = inner.kept.get(part.axis)
    runs = part.runs if before is None else _within(before, part.runs)
    return StoredPart(inner.tensor, {**inner.kept, part.axis: runs})


def _within(outer: Runs, runs: Runs) -> Runs:
    """Return spans of what is kept of a dimension as spans of the dimension."""
    kept = _numbers(outer)
    found: list[tuple[int, int]] = []
    for number in (kept[at] for start, stop in runs for at in range(start, stop)):
        begin = found.pop()[0] if found and found[-1][1] == number else number
        found.append((begin, number + 1))
    return tuple(found)


def moved_bytes(expression: Expression) -> StoredPart | None:
    """Return what to copy of a tensor in pieces; None where it is calculated, or the pieces are too small and many."""
    part = stored_part(expression) if isinstance(expression, PartOf) else None
    if part is None or part.tensor.dtype not in FLOATS:
        return part
    length = part.row_bytes // max(1, len(part.spans()))
    return None if length < _SHORT_BYTES and part.pieces > _MOST_PIECES else part


def needs_arithmetic(expression: Expression) -> bool:
    """Whether a tensor is calculated, or gathered from pieces too small to be copied one by one."""
    if isinstance(expression, PartOf):
        return needs_arithmetic(expression.of) or moved_bytes(expression) is None
    return isinstance(expression, MeanOf | TruncatedOf | JoinedOf)
