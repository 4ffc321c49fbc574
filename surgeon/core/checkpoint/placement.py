"""Sees that each tensor is in one place: that from which transformers takes it, and that the index means.

transformers reads every tensor of every shard, in the order of the shards' names, so that of two copies the last one
counts. What the index says of tensors it reads only to find the shards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import msgspec

from surgeon.core.checkpoint.shard_index import ShardIndex
from surgeon.core.checkpoint.tensors import Shard
from surgeon.core.checkpoint.weight_files import listed
from surgeon.errors import CheckpointError


@dataclass(frozen=True)
class Placed:
    """The shards without the copies that do not count; the tensors that the index does not list; notes on both."""

    shards: tuple[Shard, ...]
    unlisted: frozenset[str]
    notes: tuple[str, ...]


def place_tensors(shards: Sequence[Shard], index: ShardIndex | None) -> Placed:
    """Decide which copy of each tensor counts.

    Raises:
        CheckpointError: the index means another one than transformers takes, or names what is not there.
    """
    copies = find_copies(shards, index)
    homes = {name: shard.path for shard in shards for name in shard.names}  # of two copies the last
    if index is None:
        return Placed(tuple(shards), frozenset(), ())
    index.check(homes)
    notes = []
    if copies:
        name, (*_, first, last) = next(iter(copies.items()))
        others = f" and {len(copies) - 1} more tensors are" if len(copies) > 1 else " is"
        notes.append(
            f"{name}{others} in two shards: that of {last.name} counts, as the index says and transformers takes it, "
            f"and that of {first.name} is left out"
        )
    unlisted = frozenset(homes.keys() - index.weight_map.keys())
    if unlisted:
        notes.append(
            f"{len(unlisted)} tensors of the shards are not in the index, which transformers reads all the same: "
            f"{listed(sorted(unlisted))}"
        )
    alive = [part for shard in shards for part in without(shard, {n for n in copies if homes[n] is not shard.path})]
    return Placed(tuple(alive), unlisted, tuple(notes))


def find_copies(shards: Sequence[Shard], index: ShardIndex | None) -> dict[str, list[Path]]:
    """Return the shards of each tensor that is in several, in their order.

    Raises:
        CheckpointError: the last one, which transformers takes, is not the one that the index means.
    """
    found: dict[str, list[Path]] = {}
    homes: dict[str, Path] = {}
    for shard in shards:
        for name in shard.names:
            first = homes.setdefault(name, shard.path)
            if first is not shard.path:
                found.setdefault(name, [first]).append(shard.path)
    for name, paths in found.items():
        _refuse_other_copy(name, paths, index)
    return found


def _refuse_other_copy(name: str, paths: Sequence[Path], index: ShardIndex | None) -> None:
    *_, first, last = paths
    meant = index.weight_map.get(name) if index is not None else None
    if index is not None and meant is not None and index.paths[meant] == last:
        return
    says = f"the index means that of {meant}" if meant else "the index does not list it"
    repair = f"remove the copy from {first.name if meant is None else last.name}"
    if meant:
        repair += f", or give {meant} a name that sorts behind {last.name}, in the index too"
    raise CheckpointError(
        f"tensor {name!r} is also in {first.name}: {says}, transformers takes that of {last.name}, the last by name",
        where=str(last),
        allowed="each tensor in one shard, or the one that counts in the last",
        hint=f"{repair}; downloading again does not help where it was published so",
    )


def without(shard: Shard, names: Collection[str]) -> list[Shard]:
    """Return a shard as parts that follow each other without a gap, some tensors left out."""
    if not names:
        return [shard]
    starts = list(accumulate((one.nbytes for one in shard.types), initial=shard.start))
    parts: list[Shard] = []
    first = 0
    for at, name in enumerate([*shard.names, ""]):
        if at == len(shard.names) or name in names:
            if at > first:
                names_of, types_of = shard.names[first:at], shard.types[first:at]
                parts.append(msgspec.structs.replace(shard, names=names_of, types=types_of, start=starts[first]))
            first = at + 1
    return parts
