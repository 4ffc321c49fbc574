"""Reads `model.safetensors.index.json`, which says which shard holds each tensor, and holds it to its word."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from surgeon.core.checkpoint.strict_headers import unrepeated_json
from surgeon.errors import CheckpointError

INDEX = "model.safetensors.index.json"


class ShardIndex(msgspec.Struct, frozen=True):
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
    raw = where.read_bytes()
    weight_map = _plain_weight_map(raw, path) or _checked_weight_map(raw, where)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for tensor, shard in weight_map.items():
        names[shard].append(tensor)
    return ShardIndex(where, {name: path / name for name in sorted(names)}, weight_map, names)


def _plain_weight_map(raw: bytes, directory: Path) -> dict[str, str] | None:
    """Return what an index says that is as nearly all are; None for any in which something is odd, right or wrong.

    It is odd if a shard is no file in the directory itself, or if there are other quotation marks than those around
    what is expected, each once: then a key is repeated or unknown.
    """
    shard = _shards_of(directory)
    fields: list[Any] = [("weight_map", dict[str, shard]), ("metadata", msgspec.Raw, msgspec.Raw(b""))]  # type: ignore[valid-type]
    try:
        index: Any = msgspec.json.decode(raw, type=msgspec.defstruct("Index", fields))
        metadata = bytes(index.metadata)
        if metadata:
            unrepeated_json(metadata)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    quotes = 2 + 4 * len(index.weight_map) + (2 + metadata.count(b'"') if metadata else 0)
    return index.weight_map if b"\\" not in raw and raw.count(b'"') == quotes else None


def _shards_of(directory: Path) -> Any:
    """Return the type of the name of a shard that is there.

    The decoder then makes each name once, and not for every tensor.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_file() and "\\" not in entry.name]
    return Literal[tuple(name for name in names if Path(name).suffix == ".safetensors") or ("",)]


def _checked_weight_map(raw: bytes, where: Path) -> dict[str, str]:
    try:
        weight_map = msgspec.convert(unrepeated_json(raw)["weight_map"], dict[str, str])
    except (msgspec.ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"has no readable weight_map: {error}",
            where=str(where),
            allowed='{"weight_map": {TENSOR: FILE, …}}',
            hint="download it again",
        ) from error
    for name in dict.fromkeys(weight_map.values()):
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or inside.suffix != ".safetensors":
            raise CheckpointError(
                f"names {name!r}, which is not a safetensors file inside the directory",
                where=str(where),
                allowed="relative *.safetensors paths without '..'",
                hint="do not trust this checkpoint",
            )
        if not (where.parent / inside).is_file():
            raise CheckpointError(
                f"names {name!r}, which is missing",
                where=str(where),
                hint="the download is incomplete: fetch that file again",
            )
    return weight_map
