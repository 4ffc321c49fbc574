"""Parts of a stored tensor, read some megabytes at a time: nothing is calculated, and memory stays at that."""

from __future__ import annotations

import os
from collections.abc import Iterator

from surgeon.core.checkpoint.file_stamps import shortened, unreadable
from surgeon.core.plan.stored_parts import StoredPart

_PIECE = 8 * 2**20


def gathered(source: int, part: StoredPart) -> Iterator[bytes]:
    """Yield the bytes of the result in order; `source` is the open shard.

    Raises:
        CheckpointError: the shard ends too early.
    """
    spans, size = part.spans(), part.row_bytes
    for first, end in part.rows():
        if size > _PIECE:
            yield from _long_rows(source, part, range(first, end), spans)
        else:
            yield from _short_rows(source, part, range(first, end), spans)


def _long_rows(source: int, part: StoredPart, rows: range, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    for row in rows:
        for start, stop in spans:
            for at in range(start, stop, _PIECE):
                yield bytes(_read(source, part, row * part.row_bytes + at, min(_PIECE, stop - at)))


def _short_rows(source: int, part: StoredPart, rows: range, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    size = part.row_bytes
    many = max(1, _PIECE // size)
    for first in range(rows.start, rows.stop, many):
        read = memoryview(_read(source, part, first * size, min(many, rows.stop - first) * size))
        yield b"".join(read[row + start : row + stop] for row in range(0, len(read), size) for start, stop in spans)


def _read(source: int, part: StoredPart, start: int, count: int) -> bytearray:
    data = bytearray(count)
    view, position = memoryview(data), part.tensor.start + start
    while view:
        try:
            done = os.preadv(source, [view], position)
        except OSError as error:
            raise unreadable(part.tensor.shard, error) from error
        if not done:
            raise shortened(part.tensor.shard)
        view, position = view[done:], position + done
    return data
