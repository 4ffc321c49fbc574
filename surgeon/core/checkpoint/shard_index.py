"""Reads `model.safetensors.index.json`, which says which shard holds each tensor, and holds it to its word."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from surgeon.core.checkpoint.strict_headers import unrepeated_json
from surgeon.errors import CheckpointError

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ShardIndex:
    """What the index at `where` says.

    paths: the shards, sorted by name.   weight_map: the shard's name by tensor.   names: the tensors by shard.
    """

    where: Path
    paths: Mapping[str, Path]
    weight_map: Mapping[str, str]
    names: Mapping[str, Sequence[str]]

    def check(self, homes: Mapping[str, Path]) -> None:
        """Compare with where each tensor is.

        Raises:
            CheckpointError: one that it names is in another shard, or in none.
        """
        for name, shard in self.weight_map.items():
            if name not in homes:
                raise CheckpointError(
                    f"promises tensor {name!r} in {shard}, which does not hold it",
                    where=str(self.where),
                    hint="index and shards are of different downloads: fetch all of them again",
                )
            if homes[name] != self.paths[shard]:
                raise CheckpointError(
                    f"puts {name!r} in {shard}, but it is in {homes[name].name}",
                    where=str(self.where),
                    hint="index and shards are of different downloads: fetch all of them again",
                )


def read_index(path: Path) -> ShardIndex:
    """Read the index of a directory.

    Raises:
        CheckpointError: it cannot be read, or names what is no shard inside the directory.
    """
    where = path / INDEX
    try:
        weight_map = _weight_map(where)
    except (msgspec.ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"has no readable weight_map: {error}",
            where=str(where),
            allowed='{"weight_map": {TENSOR: FILE, …}}',
            hint="download it again",
        ) from error
    names: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        names.setdefault(shard, []).append(tensor)
    for name in names:
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or inside.suffix != ".safetensors":
            raise CheckpointError(
                f"names {name!r}, which is not a safetensors file inside the directory",
                where=str(where),
                allowed="relative *.safetensors paths without '..'",
                hint="do not trust this checkpoint",
            )
        if not (path / inside).is_file():
            raise CheckpointError(
                f"names {name!r}, which is missing",
                where=str(where),
                hint="the download is incomplete: fetch that file again",
            )
    return ShardIndex(where, {name: path / name for name in sorted(names)}, weight_map, names)


def _weight_map(where: Path) -> dict[str, str]:
    """Return the shard's name by tensor, from an index in which no key is repeated."""
    raw = where.read_bytes()
    return _plain_weight_map(raw, where.parent) or msgspec.convert(unrepeated_json(raw)["weight_map"], dict[str, str])


def _plain_weight_map(raw: bytes, directory: Path) -> dict[str, str] | None:
    """Return the same from an index of shards that are there, in the usual form; None for any other, right or wrong."""
    there = tuple(entry.name for entry in os.scandir(directory) if entry.name.endswith(".safetensors"))
    # Told of all names that may occur, the decoder makes each once, and not for every tensor.
    shard: Any = Literal[there] if there else str
    fields: list[Any] = [("weight_map", dict[str, shard]), ("metadata", msgspec.Raw, msgspec.Raw(b""))]
    try:
        index: Any = msgspec.json.decode(raw, type=msgspec.defstruct("Index", fields))
        metadata = bytes(index.metadata)
        if metadata:
            unrepeated_json(metadata)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    # More quotation marks than these would be another key's, or those of one that is repeated.
    quotes = 2 + 4 * len(index.weight_map) + (2 + metadata.count(b'"') if metadata else 0)
    return index.weight_map if b"\\" not in raw and raw.count(b'"') == quotes else None
