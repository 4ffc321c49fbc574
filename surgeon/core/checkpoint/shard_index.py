"""Reads `model.safetensors.index.json`, which says which shard holds each tensor, and holds it to its word."""

from __future__ import annotations

import json
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


def read_index(directory: Path, name: str = INDEX) -> ShardIndex:
    """Read an index of a directory, to which the names of its shards are relative.

    Raises:
        CheckpointError: it cannot be read, or names what is no shard inside the directory.
    """
    where = directory / name
    raw = where.read_bytes()
    weight_map = _plain_weight_map(raw, directory) or _checked_weight_map(raw, where, directory)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for tensor, shard in weight_map.items():
        names[shard].append(tensor)
    return ShardIndex(where, {name: directory / name for name in sorted(names)}, weight_map, names)


def names_in_index(where: Path) -> list[str] | None:
    """Return the files that an index names that is not needed; None where it cannot be read."""
    try:
        weight_map = msgspec.convert(json.loads(where.read_bytes())["weight_map"], dict[str, str])
    except (OSError, msgspec.ValidationError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return sorted(set(weight_map.values()))


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
        if not isinstance(unrepeated_json(metadata or b"null"), dict):
            return None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    quotes = 4 + 4 * len(index.weight_map) + metadata.count(b'"')
    return index.weight_map if b"\\" not in raw and raw.count(b'"') == quotes else None


def _shards_of(directory: Path) -> Any:
    """Return the type of the name of a shard that is there.

    The decoder then makes each name once, and not for every tensor.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_file() and "\\" not in entry.name]
    return Literal[tuple(name for name in names if Path(name).suffix == ".safetensors") or ("",)]


def _checked_weight_map(raw: bytes, where: Path, directory: Path) -> dict[str, str]:
    try:
        index = unrepeated_json(raw)
        weight_map = msgspec.convert(index["weight_map"], dict[str, str])
    except (msgspec.ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"has no readable weight_map: {error}",
            where=str(where),
            allowed='{"weight_map": {TENSOR: FILE, …}}',
            hint="download it again",
        ) from error
    shards = sorted(set(weight_map.values()))
    for name in shards:
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or inside.suffix != ".safetensors":
            raise CheckpointError(
                f"names {name!r}, which is not a safetensors file inside the directory",
                where=str(where),
                allowed="relative *.safetensors paths without '..'",
                hint="do not trust this checkpoint",
            )
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise _missing(where, directory, shards, missing)
    if not isinstance(index.get("metadata"), dict):
        raise CheckpointError(
            "has no metadata, without which transformers does not load it",
            where=str(where),
            allowed='{"metadata": {}, "weight_map": {TENSOR: FILE, …}}',
            hint='add "metadata": {} to it',
        )
    return weight_map


def _missing(where: Path, directory: Path, shards: Sequence[str], missing: Sequence[str]) -> CheckpointError:
    """Say that shards are missing; where none of them is there, but others are, that the index is another model's."""
    others = sorted(file.name for file in directory.glob("*.safetensors") if file.name not in shards)
    if others and len(missing) == len(shards):
        return CheckpointError(
            f"does not belong to the files that are there: it names {len(shards)}, {shards[0]} and so on, of which "
            f"none is here; here are {len(others)} others, {others[0]} and so on",
            where=str(where),
            hint="fetch the index that was saved with those files: they are of another download than this one",
        )
    more = f" and {len(missing) - 1} more, which are" if len(missing) > 1 else ", which is"
    stray = f"; {others[0]} is here, which it does not name" if others else ""
    return CheckpointError(
        f"names {missing[0]!r}{more} missing{stray}",
        where=str(where),
        hint="the download is incomplete: fetch that file again" if not others else
        "index and files are of different downloads, or the download is incomplete: fetch all of them again",
    )  # fmt: skip
