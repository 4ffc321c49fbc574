"""Decides which files of a directory are its weights, as transformers decides it, and which copy of a tensor counts.

Every reader goes by this answer. transformers reads every tensor of every shard, in the order of the shards' names, so
that of two copies the last one counts. What an index says of tensors it reads only to find the shards.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.shard_index import INDEX, ShardIndex, names_in_index, read_index
from surgeon.core.checkpoint.side_files import PICKLES
from surgeon.core.checkpoint.tensors import Shard
from surgeon.errors import CheckpointError

SINGLE = "model.safetensors"
NAMED_IN_CONFIG = "transformers_weights"
"""The config field that names the weights' file, where it is another than usual."""
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_READABLE = (".safetensors", ".safetensors.index.json")
_PICKLED_MODEL = re.compile(r"pytorch_model.*\.bin")


class WeightFiles(msgspec.Struct, frozen=True):
    """The files that hold the weights.

    paths: by name, in the order in which they are read.   index: what lists their tensors, if anything does.
    notes: what else is there, and is not read.
    """

    paths: Mapping[str, Path]
    index: ShardIndex | None
    notes: tuple[str, ...] = ()


def find_weight_files(path: Path, config: Mapping[str, Any]) -> WeightFiles:
    """Decide which files of a directory are its weights.

    transformers takes the file that the config names, or else `model.safetensors`, or else the shards of the index.

    Raises:
        CheckpointError: there are none that it would load, or it would load others than a person would think.
    """
    there = sorted(file.name for file in path.iterdir() if file.is_file())
    _refuse_distributed(path, there)
    named = config.get(NAMED_IN_CONFIG)
    if named is not None:
        found = _named_in_config(path, named)
        found = msgspec.structs.replace(found, notes=(f"{named} is read, which config field {NAMED_IN_CONFIG} names",))
    elif (path / SINGLE).is_file():
        found = WeightFiles({SINGLE: path / SINGLE}, None)
        if (path / INDEX).is_file():
            beside = names_in_index(path / INDEX)
            found = msgspec.structs.replace(found, notes=tuple(_beside_single(path, beside)))
            there = [name for name in there if name not in (beside or ())]
    elif (path / INDEX).is_file():
        index = read_index(path)
        found = WeightFiles(index.paths, index)
    else:
        raise _none_found(path, there)
    left = [name for name in there if name not in found.paths and _is_model(name)]
    if left:
        found = msgspec.structs.replace(
            found, notes=(*found.notes, f"not read, and left out of what is written: {listed(left)}")
        )
    return found


def listed(names: Iterable[str], most: int = 3) -> str:
    """Write a few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is_model(name: str) -> bool:
    return name.endswith(".safetensors") or _PICKLED_MODEL.fullmatch(name) is not None


def _refuse_distributed(path: Path, there: Iterable[str]) -> None:
    """Refuse what transformers takes for a distributed checkpoint, before it looks at anything else."""
    found = next((name for name in there if _DISTRIBUTED.fullmatch(name)), None)
    if found:
        raise CheckpointError(
            f"holds {found}, a part of a distributed checkpoint, which transformers prefers to all other weights",
            where=str(path),
            allowed=f"{SINGLE}, or shards with {INDEX}",
            hint="load it with transformers and save it with save_pretrained, or move those files elsewhere",
        )


def _named_in_config(path: Path, named: Any) -> WeightFiles:
    where = f"{path / 'config.json'}, {NAMED_IN_CONFIG}"
    inside = Path(named) if isinstance(named, str) and named else Path("..")
    if inside.is_absolute() or ".." in inside.parts or not inside.name.endswith(_READABLE):
        raise CheckpointError(
            f"is {named!r}, which is no safetensors file inside the directory",
            where=where,
            allowed="*.safetensors or *.safetensors.index.json, without '..'",
            hint="remove the field where the weights have their usual names",
        )
    if not (path / inside).is_file():
        raise CheckpointError(
            f"names {named!r}, which is missing",
            where=where,
            hint="fetch that file, or remove the field where the weights have their usual names",
        )
    if not inside.name.endswith(".json"):
        return WeightFiles({str(inside): path / inside}, None)
    index = read_index(path, str(inside))
    return WeightFiles(index.paths, index)


def _beside_single(path: Path, names: list[str] | None) -> Iterator[str]:
    """Say what an index means that stands beside `model.safetensors`, which is read without it."""
    others = [name for name in names or () if name != SINGLE]
    there = [name for name in others if (path / name).is_file()]
    kept = f"{SINGLE} is read, as transformers reads it"
    if names is None:
        yield f"{kept}: {INDEX} beside it is broken, not needed, and can be deleted"
    elif there:
        yield f"two layouts side by side: {kept}, and not {INDEX} with {listed(there)}"
    elif others:
        gone = f"the files that {INDEX} names ({listed(others)}) are gone"
        yield f"{kept}: {gone}, so that index is stale and can be deleted"


def _none_found(path: Path, there: Iterable[str]) -> CheckpointError:
    """Say why nothing that is there counts as the weights."""
    tensors = [name for name in there if name.endswith(".safetensors")]
    usual = f"{SINGLE}, or shards with {INDEX}"
    if tensors and all(re.search(r"-\d+-of-\d+", name) for name in tensors):
        what, hint = f"{len(tensors)} of several safetensors files", "the download is incomplete: fetch the index too"
        return CheckpointError(f"{what}, but no {INDEX}", where=str(path), allowed=usual, hint=hint)
    if tensors:
        return CheckpointError(
            f"{listed(tensors)}, but neither {SINGLE} nor {INDEX}: transformers would find no weights",
            where=str(path),
            allowed=usual,
            hint=f"if one file holds the whole model in the names of transformers, call it {SINGLE}; "
            "otherwise fetch the index, or convert the model to the form of transformers",
        )
    pickles = [name for name in there if name.endswith(PICKLES)]
    if pickles:
        return CheckpointError(
            f"holds only pickle files ({', '.join(pickles[:3])}), which can run code when opened",
            where=str(path),
            allowed="safetensors",
            hint=f"if you trust them: {_conversion(path)}",
        )
    return CheckpointError("there are no safetensors files", where=str(path), allowed=usual)


def _conversion(path: Path) -> str:
    """Return the command that turns pickles into safetensors, tokenizer included."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; _, old, new = sys.argv; "
        "M.from_pretrained(old, dtype='auto').save_pretrained(new); T.from_pretrained(old).save_pretrained(new)"
    )
    return shlex.join(["python", "-c", code, str(path), f"{path}-safetensors"])


class Placed(msgspec.Struct, frozen=True):
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
