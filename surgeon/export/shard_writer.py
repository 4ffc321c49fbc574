"""Writes safetensors shards header first: all shapes are known, so the bytes go straight to their place.

Whole tensors are copied as byte ranges, adjacent ones as one range, without passing through this process where the
system can do that. Memory stays at one tensor, and at nothing where nothing is calculated.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import msgspec

from surgeon.core.checkpoint.checkpoint import INDEX, SINGLE
from surgeon.core.checkpoint.dtypes import constant_bytes
from surgeon.core.checkpoint.file_stamps import shortened, unreadable
from surgeon.core.checkpoint.file_system import sync
from surgeon.core.job_context import IsCancelled
from surgeon.core.plan.expressions import Copy, Expression, Fill
from surgeon.core.plan.plan import Plan, PlannedTensor
from surgeon.core.plan.stored_parts import moved_bytes
from surgeon.errors import Cancelled
from surgeon.export.background_flush import flush_in_background
from surgeon.export.part_reader import gathered

SHARD_BYTES = 5_000_000_000
SPLIT_BYTES = 1_000_000_000
_WRITERS = 4
_PIECE = 64 * 2**20
_LEAST_RANGE = 64 * 2**10
# Other faults of copy_file_range are met again by reading and writing, which tell whose they are; many mean only that
# the two file systems, or this kernel, do not have it.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Arithmetic = Callable[[PlannedTensor], bytes]
"""Calculates one tensor and returns its little-endian bytes."""
Advance = Callable[[int], None]
"""Told how many bytes have just been written."""


@dataclass(frozen=True)
class _Range:
    """Bytes `start` to `end` of the file at `path`."""

    path: Path
    start: int
    end: int


_Piece = _Range | PlannedTensor


def write_shards(
    plan: Plan, directory: Path, arithmetic: Arithmetic | None, advance: Advance, cancelled: IsCancelled
) -> None:
    """Write every tensor of a plan, and the index if there are several shards.

    Raises:
        OSError: as the file system does. Cancelled: between two pieces.
    """
    shards = list(_divide(plan.tensors, _shard_limit(plan.tensors)))
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    paths = [directory / name for name in names]
    if arithmetic is None and len(shards) > 1:
        _write_side_by_side(paths, shards, advance, cancelled)
    else:
        for path, tensors in zip(paths, shards, strict=True):
            _write_shard(path, tensors, arithmetic, advance, cancelled)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n")


def _shard_limit(tensors: Sequence[PlannedTensor]) -> int:
    """Return how large a shard may be: from a gigabyte on there are two, which are written side by side."""
    total = sum(tensor.nbytes for tensor in tensors)
    if SPLIT_BYTES <= total <= SHARD_BYTES:
        return total // 2 + max(tensor.nbytes for tensor in tensors)
    return SHARD_BYTES


def _write_side_by_side(
    paths: Sequence[Path], shards: Sequence[Sequence[PlannedTensor]], advance: Advance, cancelled: IsCancelled
) -> None:
    """Copy several shards at once: one core moves about 2 GB/s through memory, and most disks take more."""
    told: SimpleQueue[int | None] = SimpleQueue()
    stop = Event()

    def over(shard: Future[None]) -> None:
        if shard.exception() is not None:
            stop.set()
        told.put(None)

    with ThreadPoolExecutor(min(len(shards), os.cpu_count() or 1, _WRITERS)) as pool:
        try:
            writing = [
                pool.submit(_write_shard, path, tensors, None, told.put, lambda: stop.is_set() or cancelled())
                for path, tensors in zip(paths, shards, strict=True)
            ]
            for shard in writing:
                shard.add_done_callback(over)
            left = len(shards)
            while left:
                count = told.get()
                if count is None:
                    left -= 1
                else:
                    advance(count)
        except BaseException:
            stop.set()
            raise
    faults = [fault for shard in writing if (fault := shard.exception()) is not None]
    # The first real fault cancels the other shards; theirs is not what went wrong.
    for fault in sorted(faults, key=lambda fault: isinstance(fault, Cancelled)):
        raise fault


def _divide(tensors: Sequence[PlannedTensor], limit: int) -> Iterator[list[PlannedTensor]]:
    shard: list[PlannedTensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    raw = msgspec.json.encode(header)
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _write_shard(
    path: Path,
    tensors: Sequence[PlannedTensor],
    arithmetic: Arithmetic | None,
    advance: Advance,
    cancelled: IsCancelled,
) -> None:
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    sources: dict[Path, int] = {}
    try:
        _write_all(out, _header(tensors))
        with flush_in_background(out) as tell:

            def advance_both(count: int) -> None:
                tell(count)
                advance(count)

            for piece in _merge_ranges(tensors):
                if cancelled():
                    raise Cancelled
                if isinstance(piece, _Range):
                    _copy(_opened(piece.path, sources), piece, out, advance_both, cancelled)
                    continue
                for data in _made(piece, arithmetic, sources):
                    if cancelled():
                        raise Cancelled
                    _write_all(out, data)
                    advance_both(len(data))
        sync(out)
    finally:
        for handle in (out, *sources.values()):
            os.close(handle)


def _opened(path: Path, sources: dict[Path, int]) -> int:
    if path not in sources:
        sources[path] = _open_source(path)
    return sources[path]


def _open_source(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise unreadable(path, error) from error


def _merge_ranges(tensors: Sequence[PlannedTensor]) -> Iterator[_Piece]:
    """Yield what to write in order, runs of tensors that are adjacent in their source as one range."""
    run: _Range | None = None
    for tensor in tensors:
        ranges = _ranges(tensor.source)
        if ranges is None:
            if run is not None:
                yield run
            run = None
            yield tensor
            continue
        for one in ranges:
            if run is not None and run.path == one.path and run.end == one.start:
                run = _Range(run.path, run.start, one.end)
                continue
            if run is not None:
                yield run
            run = one
    if run is not None:
        yield run


def _ranges(source: Expression) -> list[_Range] | None:
    """Return where the bytes of a tensor lie that is copied in ranges long enough for it; None where it is not."""
    if isinstance(source, Copy):
        return [_Range(source.tensor.shard, source.tensor.start, source.tensor.end)]
    part = moved_bytes(source)
    if part is None or not part.pieces or part.nbytes < part.pieces * _LEAST_RANGE:
        return None
    return [_Range(part.tensor.shard, start, end) for start, end in part.ranges()]


def _made(tensor: PlannedTensor, arithmetic: Arithmetic | None, sources: dict[Path, int]) -> Iterator[bytes]:
    if isinstance(tensor.source, Fill):
        yield constant_bytes(tensor.source.value, tensor.dtype) * tensor.parameters
    elif (part := moved_bytes(tensor.source)) is not None:
        yield from gathered(_opened(part.tensor.shard, sources), part)
    else:
        assert arithmetic is not None, "a plan that calculates needs arithmetic"
        yield arithmetic(tensor)


def _write_all(out: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]


def _copy(source: int, piece: _Range, out: int, advance: Advance, cancelled: IsCancelled) -> None:
    position, in_kernel = piece.start, hasattr(os, "copy_file_range")
    while position < piece.end:
        if cancelled():
            raise Cancelled
        wanted = min(piece.end - position, _PIECE)
        moved = 0
        if in_kernel:
            try:
                moved = os.copy_file_range(source, out, wanted, offset_src=position)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
            in_kernel = moved > 0
        if not in_kernel:
            try:
                data = os.pread(source, min(wanted, 8 * 2**20), position)
            except OSError as error:
                raise unreadable(piece.path, error) from error
            if not data:
                raise shortened(piece.path)
            _write_all(out, data)
            moved = len(data)
        position += moved
        advance(moved)
