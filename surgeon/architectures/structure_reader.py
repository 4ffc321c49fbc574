"""Reads a checkpoint's structure: which tensors form layers, and what the config says about each of them.

Works from names and shapes; a family contributes only what is special about it. What cannot be understood is refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from surgeon.architectures import shared
from surgeon.architectures.parts import part_rules
from surgeon.architectures.stack_finding import Found, Group, config_parts, families, find_stacks
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.garbage import nothing_collected
from surgeon.core.checkpoint.tensors import Shard, Tensor
from surgeon.core.structure.companions import is_text
from surgeon.core.structure.config_layer_names import LayerNames
from surgeon.core.structure.family import Family
from surgeon.core.structure.layer_dependencies import UnexplainedDifference
from surgeon.core.structure.layer_fields import LayerField, PerLayerList, of_base
from surgeon.core.structure.layer_runs import LayerRun, text_prefixes
from surgeon.core.structure.layouts import LayerTensors, Run, layers_of
from surgeon.core.structure.quantisation import quantisation_documents
from surgeon.core.structure.structure import Stack, Structure, Twin
from surgeon.core.structure.uneven_layers import read_listed

__all__ = ["families", "read_structure"]

_NUMBERED = re.compile(r"(?P<prefix>.*?)\.(?P<index>\d+)\.(?P<suffix>.*)", re.DOTALL)


@nothing_collected()
def read_structure(checkpoint: Checkpoint) -> Structure:
    """Understand a checkpoint from its config and headers.

    Raises:
        ArchitectureError: its layers cannot be told, or a per-layer config field contradicts the weights.
    """
    return read_listed(checkpoint, _read)


def _read(checkpoint: Checkpoint) -> Structure:
    groups, loose = _numbered_groups(checkpoint.shards)
    found = find_stacks(checkpoint, groups)
    family = _family(checkpoint.config, found[0])
    layers = {
        one.name: layers_of([groups[one.prefix][index] for index in range(len(groups[one.prefix]))]) for one in found
    }
    inside = {one.prefix for one in found}
    others = {prefix: group for prefix, group in groups.items() if prefix not in inside}
    runs = tuple(_runs(found, layers, others, family))
    stacks = {one.name: _stack(one, layers[one.name], checkpoint, family, runs) for one in found}
    return Structure(
        checkpoint=checkpoint,
        family=family,
        stacks=stacks,
        outside=_outside(checkpoint, loose, list(others.values())),
        role_rules=tuple((re.compile(pattern), role) for pattern, role in family.roles),
        default_stack=found[0].name,
        runs=runs,
        outputs=shared.OUTPUTS,
    )


def _runs(
    found: Sequence[Found], layers: Mapping[str, Sequence[LayerTensors]], others: Mapping[str, Group], family: Family
) -> Iterator[LayerRun]:
    """Yield all that is numbered, and the names by which files may speak of it."""
    for one in found:
        live = f"{one.prefix}.0."
        for pattern, replacement in family.in_memory:
            live = re.sub(pattern, replacement, live)
        many = others or one.path or "language_model" in one.prefix
        names = dict.fromkeys((*(text_prefixes(one.prefix) if many else (one.prefix,)), live.removesuffix(".0.")))
        paths = (one.path, *(twin.path for twin in one.twins))
        yield LayerRun(one.name, tuple(names), layers[one.name], one.count, paths)
    for prefix, group in others.items():
        numbered = layers_of([group[index] for index in sorted(group)])
        yield LayerRun("", (prefix,), numbered, len(numbered))


def _family(config: Mapping[str, Any], found: Found) -> Family:
    """Return the family of the part of the config that describes the layers, joined with what all have in common."""
    known = families()
    types = [str(part.get("model_type")) for path, part in config_parts(config) if found.path[: len(path)] == path]
    declared = [known[model_type] for model_type in dict.fromkeys(types) if model_type in known]
    special = declared[-1] if declared else Family()
    own = {key for field in special.fields for key in (field.key, *field.replaces)}
    return msgspec.structs.replace(
        special,
        roles=(*special.roles, *shared.ROLES),
        in_memory=(*(rule for family in declared for rule in family.in_memory), *shared.IN_MEMORY),
        fields=(*special.fields, *(field for field in shared.FIELDS if field.key not in own)),
        parts=part_rules(types),
    )


def _numbered_groups(shards: Sequence[Shard]) -> tuple[dict[str, dict[int, list[Run]]], list[Run]]:
    """Return where the tensors of what is numbered are, by prefix and number, and where all others are."""
    groups: dict[str, dict[int, list[Run]]] = {}
    loose: list[Run] = []
    for shard in shards:
        names, first = shard.names, 0
        while first < len(names):
            match = _NUMBERED.fullmatch(names[first])
            end = first + 1
            if match is None:
                loose.append(Run(shard, first, end))
            else:
                # A layer's tensors mostly follow each other: only the first of a run is taken apart.
                start = names[first][: match.start("suffix")]
                while end < len(names) and names[end].startswith(start):
                    end += 1
                runs = groups.setdefault(match["prefix"], {}).setdefault(int(match["index"]), [])
                # `layers.01.` is no other spelling of `layers.1.`.
                (runs if not runs or runs[0].prefix == start else loose).append(Run(shard, first, end, start))
            first = end
    return groups, loose


def _outside(checkpoint: Checkpoint, loose: Sequence[Run], others: Sequence[Group]) -> dict[str, Tensor]:
    """Return the tensors that belong to no stack, in the order of the shards."""
    rank = {id(shard): number for number, shard in enumerate(checkpoint.shards)}
    numbered = (run for group in others for runs in group.values() for run in runs)
    in_order = sorted((*loose, *numbered), key=lambda run: (rank[id(run.shard)], run.first))
    return {tensor.name: tensor for run in in_order for tensor in run.tensors}


def _stack(
    found: Found, layers: Sequence[LayerTensors], checkpoint: Checkpoint, family: Family, runs: Sequence[LayerRun]
) -> Stack:
    count = found.count
    part = _part(checkpoint.config, found.path)
    fields = [of_base(field, count) for field in family.fields if field.read(part, count) is not None]
    unknown = _unknown_lists(part, family, count)
    fields += [PerLayerList(name) for name in unknown]
    if found.conflict:
        fields.append(found.conflict)
    twins = [_twin(twin, _part(checkpoint.config, twin.path), fields, family, count) for twin in found.twins]
    readings = {field.key: field.read(part, count) or () for field in fields}
    for twin in twins:
        where = _part(checkpoint.config, twin.path)
        readings |= {twin.setting(field): _wrapped(field.read(where, count)) for field in twin.fields}
    settings = [{key: values[index] for key, values in readings.items()} for index in range(count)]
    run = next(run for run in runs if run.name == found.name)
    unexplained = _unexplained(checkpoint, run, runs, settings)
    if unexplained:
        fields.append(unexplained)
        settings = [
            {**setting, unexplained.key: build} for setting, build in zip(settings, unexplained.builds, strict=True)
        ]
    tail = tuple(layers[count:])
    return Stack(
        name=found.name,
        prefix=found.prefix,
        config_path=found.path,
        count_keys=found.count_keys,
        layers=tuple(layers[:count]),
        settings=tuple(settings),
        fields=tuple(fields),
        twins=tuple(twin for twin in twins if twin.count_keys or twin.fields),
        implied=found.implied,
        tail=tail,
        notes=tuple(_notes(unknown, tail, count)),
    )


def _part(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    part: Any = config
    for key in path:
        part = part[key]
    return part


def _twin(twin: Twin, part: Mapping[str, Any], fields: Sequence[LayerField], family: Family, count: int) -> Twin:
    """Return a twin with the fields that it states: what follows from defaults is the stack's own part's to say."""
    stated = [
        of_base(field, count)
        for field in family.fields
        if not part.keys().isdisjoint((field.key, *field.replaces)) and field.read(part, count) is not None
    ]
    unknown = [PerLayerList(name) for name in _unknown_lists(part, family, count)]
    known = {field.key for field in fields}
    stated += [field for field in unknown if field.key in known or "layer" in field.key]
    return msgspec.structs.replace(twin, fields=tuple(stated))


def _wrapped(values: Sequence[Any] | None) -> tuple[Any, ...]:
    return tuple((value,) for value in values or ())


def _unknown_lists(part: Mapping[str, Any], family: Family, count: int) -> list[str]:
    known = {key for field in family.fields for key in (field.key, *field.replaces)}
    return [name for name, value in part.items() if name not in known and _describes_layers(name, value, count)]


def _unexplained(
    checkpoint: Checkpoint, run: LayerRun, runs: Sequence[LayerRun], settings: Sequence[Mapping[str, Any]]
) -> UnexplainedDifference | None:
    """Find layers of which config and files say the same, but which are built differently."""
    layouts = [layer.layout for layer in run.layers[: run.count]]
    known = {
        layout: frozenset((suffix, None if is_text(suffix) else one.shape) for suffix, one in layout.types.items())
        for layout in dict.fromkeys(layouts)
    }
    builds = [known[layout] for layout in layouts]
    kinds = {build: number for number, build in enumerate(dict.fromkeys(builds))}
    said = [repr(setting) for setting in settings]
    if _told_apart(said, builds):
        return None
    for where, document in quantisation_documents(checkpoint):
        named = LayerNames(where, runs, config=where == "config.json").said_of_layers(document, run)
        said = [f"{one} {more}" for one, more in zip(said, named, strict=True)]
    return None if _told_apart(said, builds) else UnexplainedDifference(tuple(kinds[build] for build in builds))


def _told_apart(said: Sequence[str], builds: Sequence[Hashable]) -> bool:
    seen: dict[str, Hashable] = {}
    return all(seen.setdefault(one, build) == build for one, build in zip(said, builds, strict=True))


def _notes(unknown: Sequence[str], tail: Sequence[Any], count: int) -> Iterator[str]:
    for name in unknown:
        yield f"config field {name}, unknown to surgeon, has one entry per layer: they travel with the layers"
    if tail:
        yield f"{len(tail)} are numbered behind the {count} layers that the config counts: they stay behind the last"


def _describes_layers(name: str, value: Any, count: int) -> bool:
    return name not in shared.NOT_PER_LAYER and isinstance(value, list) and len(value) == count and count > 1
