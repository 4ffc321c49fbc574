"""Decides which files of a directory are its weights, as transformers decides it. Every reader goes by this answer."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgeon.core.checkpoint.shard_index import INDEX, ShardIndex, names_in_index, read_index
from surgeon.errors import CheckpointError

SINGLE = "model.safetensors"
NAMED_IN_CONFIG = "transformers_weights"
"""The config field that names the weights' file, where it is another than usual."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHER_WEIGHTS = (*_PICKLES, ".safetensors", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".npz", ".tflite")
"""Weights in whatever format: those that are not read are no longer those of this model once it is edited."""
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_READABLE = (".safetensors", ".safetensors.index.json")
_PICKLED_MODEL = re.compile(r"pytorch_model.*\.bin")


@dataclass(frozen=True)
class WeightFiles:
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
        found = replace(found, notes=(f"{named} is read, which config field {NAMED_IN_CONFIG} names",))
    elif (path / SINGLE).is_file():
        found = WeightFiles({SINGLE: path / SINGLE}, None)
        if (path / INDEX).is_file():
            beside = names_in_index(path / INDEX)
            found = replace(found, notes=tuple(_beside_single(path, beside)))
            there = [name for name in there if name not in (beside or ())]
    elif (path / INDEX).is_file():
        index = read_index(path)
        found = WeightFiles(index.paths, index)
    else:
        raise _none_found(path, there)
    left = [name for name in there if name not in found.paths and _is_model(name)]
    if left:
        found = replace(found, notes=(*found.notes, f"not read, and left out of what is written: {listed(left)}"))
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
    pickles = [name for name in there if name.endswith(_PICKLES)]
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
