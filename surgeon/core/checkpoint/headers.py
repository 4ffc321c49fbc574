"""Reads the headers of safetensors shards. Never reads tensor data.

A header says where every tensor lies; everything that a broken or hostile one can lie about is checked here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec

from surgeon.core.checkpoint.strict_headers import each_once, read_strictly
from surgeon.core.checkpoint.tensors import Shard, TensorType, tensor_type
from surgeon.errors import CheckpointError

_PREFIX_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LFS_POINTER = b"version https://git-lfs"
_METADATA = "__metadata__"


def read_header(shard: Path) -> Shard:
    """Read one shard's header.

    Raises:
        CheckpointError: the file is truncated, or the header contradicts itself or the file.
        OSError: it cannot be read.
    """
    raw, size = _header_bytes(shard)
    start = _PREFIX_BYTES + len(raw)
    return _read_plainly(shard, raw, start, size) or read_strictly(shard, raw, start, size)


class _Entry(msgspec.Struct, gc=False):
    """What a header says of one tensor; offsets count from the end of the header. What is missing fits nothing."""

    dtype: str = ""
    shape: tuple[int, ...] = (-1,)
    data_offsets: tuple[int, int] = (-1, -1)


_ENTRIES = msgspec.json.Decoder(dict[str, _Entry])
_QUOTES_OF_AN_ENTRY = 10  # around its name, three keys and the dtype


def _read_plainly(shard: Path, raw: bytes, start: int, size: int) -> Shard | None:
    """Read a header as nearly all are; None for any in which something is odd, right or wrong.

    It is odd if it holds other quotation marks than those around what is expected, each once: then a key is repeated,
    missing or unknown. Hundreds of thousands of tensors are read so in a fraction of a second.
    """
    if b"\\" in raw:
        return None
    try:
        entries = _ENTRIES.decode(raw)
        metadata, quotes = _plain_metadata(raw) if entries.pop(_METADATA, None) is not None else ({}, 0)
        if raw.count(b'"') != quotes + _QUOTES_OF_AN_ENTRY * len(entries):
            return None
        types = _adjacent_types(entries.values(), size - start)
        if types is None:
            entries = dict(sorted(entries.items(), key=lambda item: item[1].data_offsets))
            types = _adjacent_types(entries.values(), size - start)
    except (msgspec.DecodeError, ValueError, KeyError, RecursionError):
        return None
    return None if types is None else Shard(shard, list(entries), types, start, metadata)


def _plain_metadata(raw: bytes) -> tuple[dict[str, str], int]:
    """Return the metadata of a header, and the number of quotation marks that it takes."""
    text = raw.decode()
    key = re.search(rf'"{_METADATA}"\s*:\s*', text)
    if key is None:
        raise ValueError(_METADATA)
    value, end = json.JSONDecoder(object_pairs_hook=each_once).raw_decode(text, key.end())
    return msgspec.convert(value, dict[str, str]), text.count('"', key.start(), end)


def _adjacent_types(entries: Iterable[_Entry], room: int) -> list[TensorType] | None:
    """Return the types of tensors that follow each other and fill `room` bytes; None if they do not."""
    types = [tensor_type(entry.dtype, entry.shape) for entry in entries]
    bounds = list(accumulate((one.nbytes for one in types), initial=0))
    whole = bounds[-1] == room and [entry.data_offsets for entry in entries] == list(pairwise(bounds))
    return types if whole else None


def _header_bytes(shard: Path) -> tuple[bytes, int]:
    with shard.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
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
