"""Reads a header of any form that is right, and says of any other what is wrong with it. Takes its time over it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.dtypes import BITS
from surgeon.core.checkpoint.tensors import Shard, Tensor, tensor_type
from surgeon.errors import CheckpointError


def read_strictly(shard: Path, raw: bytes, start: int, size: int) -> Shard:
    """Read the header `raw` of a file of `size` bytes, whose data begin at `start`.

    Raises:
        CheckpointError: the header contradicts itself or the file.
    """
    try:
        header = unrepeated_json(raw)
        header = msgspec.convert(header, dict[str, dict[str, Any]])
        metadata = msgspec.convert(header.pop("__metadata__", {}), dict[str, str])
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(
            f"has a header that is not valid: {error}", where=str(shard), hint="do not trust this file"
        ) from error
    tensors = [_tensor(shard, name, entry, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_offsets(shard, tensors, start, size)
    types = [tensor_type(tensor.dtype, tensor.shape) for tensor in tensors]
    return Shard(shard, [tensor.name for tensor in tensors], types, start, metadata)


def unrepeated_json(raw: bytes) -> Any:
    """Decode JSON in which no object names a key twice: of two entries, readers disagree on which one counts.

    Raises:
        ValueError: it is no JSON, or a key is repeated. RecursionError: it is nested too deeply.
    """
    return json.loads(raw.decode(), object_pairs_hook=each_once)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of what a JSON object holds; ValueError if it names a key twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is named twice")
    return found


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
