"""What can be seen of a written checkpoint without loading it: scales, names of layers, files, bytes. No torch.

Each function yields what is wrong, in words; nothing where all is right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.side_files import MODULES, documents, module_folders
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.plan.expressions import Copy
from surgeon.core.plan.layer_moves import config_names
from surgeon.core.plan.plan import Plan
from surgeon.core.plan.planned_files import RECORDS
from surgeon.core.structure.companions import packed_weights
from surgeon.core.structure.config_layer_names import LayerNames, NamedLayer
from surgeon.core.structure.layer_dependencies import TwoCounts
from surgeon.core.structure.quantisation import FIELDS, is_quantisation_file
from surgeon.core.structure.structure import Structure

_CHUNK = 1 << 22
_WITH_CODE = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_TAIL_KEYS = ("nextn", "mtp")


def unscaled_weights(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the packed weights that have no scale though others have, or though the config says that they need one."""
    types = {name: one for shard in checkpoint.shards for name, one in zip(shard.names, shard.types, strict=True)}
    weights = packed_weights(types).values()
    expected = any(weight.scaled for weight in weights) or any(checkpoint.config.get(field) for field in FIELDS)
    yield from (f"{weight.stored} has no scale" for weight in weights if expected and not weight.scaled)


def quantised_count(checkpoint: Checkpoint) -> int:
    """Return how many weights are packed."""
    types = {name: one for shard in checkpoint.shards for name, one in zip(shard.names, shard.types, strict=True)}
    return len(packed_weights(types))


def named_layers(structure: Structure) -> Iterator[tuple[str, NamedLayer]]:
    """Yield what in config and files names a layer of a stack by its number, and the layer."""
    checkpoint = structure.checkpoint
    searched = [("config.json", config_names(structure), checkpoint.config)]
    for name in documents(checkpoint.side_files):
        if name not in RECORDS:
            searched.append((name, LayerNames(name, structure.runs), checkpoint.document(name)))
    for where, names, document in searched:
        yield from ((f"{where}, {entry}", layer) for entry, layer in names.numbers(document))


def two_counts(structure: Structure) -> Iterator[str]:
    """Yield the counts of the same layers that differ."""
    for stack in structure.stacks.values():
        for field in stack.fields:
            if isinstance(field, TwoCounts):
                yield f"config.json: {' and '.join(field.fields)} say {field.counts[0]} and {field.counts[1]}"


def stray_names(structure: Structure) -> Iterator[str]:
    """Yield entries of config and files that name a layer which is not there."""
    for entry, layer in named_layers(structure):
        there = max(len(layer.run.layers), layer.run.count + _behind(structure.checkpoint.config))
        if layer.number >= there:
            yield f"{entry}: there are {there} layers"


def _behind(config: Any) -> int:
    """Return how many layers a config says to be behind the last, whether they are stored or not."""
    counts = [0]
    for key, part in config.items() if isinstance(config, Mapping) else ():
        if isinstance(part, Mapping):
            counts.append(_behind(part))
        elif isinstance(part, int) and any(word in str(key) for word in _TAIL_KEYS):
            counts.append(int(part))
    return max(counts)


def unplanned_names(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    """Yield the places that say how weights are quantised, and do not say what the recipe makes of the base's."""
    for field in FIELDS:
        if checkpoint.config.get(field) != plan.config.get(field):
            yield f"config.json, {field} is not what the recipe makes of it"
    for name, document in plan.files.rewritten.items():
        if is_quantisation_file(name) and checkpoint.document(name) != document:
            yield f"{name} is not what the recipe makes of it"


def missing_files(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what config files point to in the checkpoint's directory and is not there."""
    for where, name in files_named(checkpoint):
        if not (checkpoint.path / name).exists():
            yield f"{where} names {name}"


def files_named(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield (file, what it names): files and folders of the checkpoint's own directory that config files name."""
    sources: list[tuple[str, Any]] = [("config.json", checkpoint.config)]
    sources += [(name, checkpoint.document(name)) for name in _WITH_CODE if name in checkpoint.side_files]
    for where, document in sources:
        for module in dict.fromkeys(_code(document.get("auto_map") if isinstance(document, Mapping) else None)):
            yield where, f"{module}.py"
    for folder, kind in module_folders(checkpoint.path):
        # One that normalises has no settings, so most copies of such a model lack its folder.
        if not kind.endswith(".Normalize"):
            yield MODULES, folder
    weights = checkpoint.config.get("transformers_weights")
    if isinstance(weights, str):
        yield "config.json", weights


def _code(auto_map: Any) -> Iterator[str]:
    """Yield the modules of a checkpoint's own code; what lies in another repository is none of it."""
    for entry in auto_map.values() if isinstance(auto_map, Mapping) else ():
        for one in entry if isinstance(entry, list) else (entry,):
            if isinstance(one, str) and "--" not in one:
                yield one.partition(".")[0]


def differing_bytes(plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the tensors that are copies and have not the bytes of the base's."""
    handles: dict[Path, int] = {}
    try:
        for planned in plan.tensors:
            if isinstance(planned.source, Copy):
                written = checkpoint.tensors.get(planned.name)
                if written is None or not _same_bytes(planned.source.tensor, written, handles):
                    yield f"{planned.name} is not {planned.source.tensor.name} of the base"
    finally:
        for handle in handles.values():
            os.close(handle)


def _same_bytes(left: Tensor, right: Tensor, handles: dict[Path, int]) -> bool:
    if left.nbytes != right.nbytes:
        return False
    for tensor in (left, right):
        if tensor.shard not in handles:
            handles[tensor.shard] = os.open(tensor.shard, os.O_RDONLY)
    for done in range(0, left.nbytes, _CHUNK):
        count = min(_CHUNK, left.nbytes - done)
        first, second = (os.pread(handles[one.shard], count, one.start + done) for one in (left, right))
        if first != second:
            return False
    return True
