"""Reads the headers of safetensors shards. Never reads tensor data.

A header says where every tensor lies; everything that a broken or hostile one can lie about is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.dtypes import BITS
from surgeon.errors import CheckpointError

_PREFIX_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Tensor:
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


def read_header(shard: Path) -> tuple[list[Tensor], dict[str, str]]:
    """Read one shard's header: its tensors in the order of their offsets, and its metadata.

    Raises:
        CheckpointError: the file is truncated, or the header contradicts itself or the file.
        OSError: it cannot be read.
    """
    raw, size = _header_bytes(shard)
    try:
        header = unrepeated_json(raw)
        header = msgspec.convert(header, dict[str, dict[str, Any]])
        metadata = msgspec.convert(header.pop("__metadata__", {}), dict[str, str])
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(
            f"has a header that is not valid: {error}", where=str(shard), hint="do not trust this file"
        ) from error
    data_start = _PREFIX_BYTES + len(raw)
    tensors = [_tensor(shard, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_offsets(shard, tensors, data_start, size)
    return tensors, metadata


def unrepeated_json(raw: bytes) -> Any:
    """Decode JSON in which no object names a key twice: of two entries, readers disagree on which one counts.

    Raises:
        ValueError: it is no JSON, or a key is repeated. RecursionError: it is nested too deeply.
    """
    return json.loads(raw.decode(), object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is named twice")
    return found


def _header_bytes(shard: Path) -> tuple[bytes, int]:
    size = shard.stat().st_size
    with shard.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise CheckpointError(
                "is a Git LFS pointer, not the file itself",
                where=str(shard),
                hint="run `git lfs pull` in its directory",
            )
        count = int.from_bytes(start[:_PREFIX_BYTES], "little")
        if len(start) < _PREFIX_BYTES or count > size - _PREFIX_BYTES:
            raise CheckpointError(
                f"is truncated: {size} bytes, but its header alone claims {count + _PREFIX_BYTES}",
                where=str(shard),
                hint="download it again",
            )
        if count > _MAX_HEADER_BYTES:
            raise CheckpointError(
                f"claims a header of {count} bytes",
                where=str(shard),
                allowed=f"at most {_MAX_HEADER_BYTES}",
                hint="this is not a safetensors file",
            )
        file.seek(_PREFIX_BYTES)
        return file.read(count), size


def _tensor(shard: Path, name: str, entry: Mapping[str, Any], data_start: int) -> Tensor:
    where = f"{shard}, tensor {name!r}"
    try:
        dtype = msgspec.convert(entry["dtype"], str)
        shape = msgspec.convert(entry["shape"], tuple[int, ...])
        start, end = msgspec.convert(entry["data_offsets"], tuple[int, int])
    except KeyError as error:
        raise CheckpointError(f"has no {error.args[0]}", where=where, hint="do not trust this file") from error
    except msgspec.ValidationError as error:
        raise CheckpointError(f"has a malformed entry: {error}", where=where, hint="do not trust this file") from error
    if dtype not in BITS:
        raise CheckpointError(f"has dtype {dtype!r}", where=where, allowed=", ".join(BITS))
    tensor = Tensor(name, dtype, shape, shard, data_start + start, data_start + end)
    if min((*shape, 0)) < 0 or start < 0 or end < start:
        raise CheckpointError("has a negative size or offset", where=where, hint="do not trust this file")
    bits = tensor.parameters * BITS[dtype]
    if bits != 8 * tensor.nbytes:
        raise CheckpointError(
            f"of shape {list(shape)} and dtype {dtype} needs {bits // 8} bytes, but its offsets span {tensor.nbytes}",
            where=where,
            hint="do not trust this file",
        )
    return tensor


def _check_offsets(shard: Path, tensors: Iterable[Tensor], data_start: int, size: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.end > size:
            raise CheckpointError(
                f"is truncated: tensor {tensor.name!r} ends at byte {tensor.end} of {size}",
                where=str(shard),
                hint="download it again",
            )
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise CheckpointError(
                f"tensor {tensor.name!r} {fault}",
                where=str(shard),
                allowed="contiguous offsets",
                hint="do not trust this file",
            )
        position = tensor.end
    if position != size:
        raise CheckpointError(
            f"holds {size - position} bytes that no tensor owns", where=str(shard), hint="download it again"
        )
