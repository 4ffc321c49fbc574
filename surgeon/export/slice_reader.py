"""Slices of a stored tensor, read a few rows at a time: nothing is calculated, and memory stays at some megabytes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from surgeon.core.checkpoint.file_stamps import shortened, unreadable
from surgeon.core.plan.layer_slices import Slices

_PIECE = 8 * 2**20


def gathered(source: int, slices: Slices) -> Iterator[bytes]:
    """Yield the bytes of the result in order; `source` is the open shard.

    Raises:
        CheckpointError: the shard ends too early.
    """
    spans, size = slices.spans(), slices.row_bytes
    many = max(1, _PIECE // size)
    for first in range(0, slices.rows, many):
        rows = memoryview(_read(source, slices, first * size, min(many, slices.rows - first) * size))
        yield b"".join(rows[row + start : row + stop] for row in range(0, len(rows), size) for start, stop in spans)


def _read(source: int, slices: Slices, start: int, count: int) -> bytearray:
    data = bytearray(count)
    view, position = memoryview(data), slices.tensor.start + start
    while view:
        try:
            done = os.preadv(source, [view], position)
        except OSError as error:
            raise unreadable(slices.tensor.shard, error) from error
        if not done:
            raise shortened(slices.tensor.shard)
        view, position = view[done:], position + done
    return data
