"""Reads a checkpoint's structure: which tensors form layers, and what the config says about each of them.

Works from names and shapes; a family contributes only what is special about it. What cannot be understood is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from surgeon.architectures import shared
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.garbage import nothing_collected
from surgeon.core.checkpoint.tensors import Shard, Tensor
from surgeon.core.registry import modules_of
from surgeon.core.structure.config_layer_names import LayerNames
from surgeon.core.structure.layer_dependencies import UnexplainedDifference
from surgeon.core.structure.layer_fields import LayerField, PerLayerList
from surgeon.core.structure.layouts import Layout, Run, layers_of
from surgeon.core.structure.structure import Family, Stack, StackRule, Structure
from surgeon.errors import ArchitectureError

_NUMBERED = re.compile(r"(?P<prefix>.*?)\.(?P<index>\d+)\.(?P<suffix>.*)", re.DOTALL)
Group = Mapping[int, Sequence[Run]]


class _Found(msgspec.Struct, frozen=True):
    """A run of layers: the rule that found it, where the config speaks of it, and how many layers that gives."""

    name: str
    prefix: str
    path: tuple[str, ...]
    count_keys: tuple[str, ...]
    count: int


@cache
def families() -> dict[str, Family]:
    """Return every declared family by model type."""
    found: dict[str, Family] = {}
    for module in modules_of("surgeon.architectures"):
        for family in (getattr(module, "FAMILY", None), *getattr(module, "FAMILIES", ())):
            for model_type in family.model_types if family else ():
                if model_type in found:
                    raise ArchitectureError(f"model type {model_type!r} is declared twice", where=module.__name__)
                found[model_type] = family
    return found


@nothing_collected()
def read_structure(checkpoint: Checkpoint) -> Structure:
    """Understand a checkpoint from its config and headers.

    Raises:
        ArchitectureError: its layers cannot be told, or a per-layer config field contradicts the weights.
    """
    groups, loose = _numbered_groups(checkpoint.shards)
    found = _find_stacks(checkpoint, groups)
    family = _family(checkpoint.config, found[0])
    stacks = {one.name: _stack(one, groups[one.prefix], checkpoint.config, family) for one in found}
    inside = {stack.prefix for stack in stacks.values()}
    others = [group for prefix, group in groups.items() if prefix not in inside]
    return Structure(
        checkpoint=checkpoint,
        family=family,
        stacks=stacks,
        outside=_outside(checkpoint, loose, others),
        role_rules=tuple((re.compile(pattern), role) for pattern, role in family.roles),
        default_stack=found[0].name,
        outputs=shared.OUTPUTS,
    )


def _family(config: Mapping[str, Any], found: _Found) -> Family:
    """Return the family of the part of the config that describes the layers, joined with what all have in common."""
    known = families()
    types = [str(part.get("model_type")) for path, part in _config_parts(config) if found.path[: len(path)] == path]
    declared = [known[model_type] for model_type in dict.fromkeys(types) if model_type in known]
    special = declared[-1] if declared else Family()
    own = {key for field in special.fields for key in (field.key, *field.replaces)}
    return msgspec.structs.replace(
        special,
        roles=(*special.roles, *shared.ROLES),
        in_memory=(*(rule for family in declared for rule in family.in_memory), *shared.IN_MEMORY),
        fields=(*special.fields, *(field for field in shared.FIELDS if field.key not in own)),
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
    rank = {shard.path: number for number, shard in enumerate(checkpoint.shards)}
    numbered = (run for group in others for runs in group.values() for run in runs)
    in_order = sorted((*loose, *numbered), key=lambda run: (rank[run.shard.path], run.first))
    return {tensor.name: tensor for run in in_order for tensor in run.tensors}


def _config_parts(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for path in shared.CONFIG_PARTS:
        part: Any = config
        for key in path:
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping):
            yield path, part


def _find_stacks(checkpoint: Checkpoint, groups: Mapping[str, Group]) -> list[_Found]:
    """Return the stacks, the default one first."""
    tried: list[str] = []
    for path, part in _config_parts(checkpoint.config):
        family = families().get(str(part.get("model_type")), Family())
        if family.unreadable:
            raise ArchitectureError(family.unreadable[1], where=f"config field {family.unreadable[0]}")
        rules = family.stacks or shared.STACKS
        stacks = [one for rule in rules if (one := _by_rule(rule, path, part, groups, tried))]
        if stacks:
            return stacks if len(stacks) > 1 else [_alone(stacks[0], part)]
        for keys, count in _counts(part):
            prefix = _prefix_with(groups, count)
            if prefix is not None:
                _refuse_siblings(prefix, groups, checkpoint)
                return [_Found("layers", prefix, path, keys, count)]
            tried.append(f"{'.'.join((*path, *keys[:1]))} = {count}")
    found = ", ".join(f"{prefix}.0-{len(group) - 1}" for prefix, group in groups.items()) or "none"
    raise ArchitectureError(
        f"no run of layers fits the config ({'; '.join(tried) or 'it gives no layer count'}); numbered: {found}",
        where=str(checkpoint.path),
        allowed="tensors named PREFIX.0.… to PREFIX.(count-1).…",
        hint="the checkpoint is incomplete, or of a kind surgeon does not know",
    )


def _by_rule(
    rule: StackRule, path: tuple[str, ...], part: Mapping[str, Any], groups: Mapping[str, Group], tried: list[str]
) -> _Found | None:
    prefixes = [
        prefix for prefix in groups if re.fullmatch(rule.prefix, prefix) and not re.search(shared.OTHER_TOWERS, prefix)
    ]
    keys = [key for key in rule.count_keys if isinstance(part.get(key), int)]
    if len(prefixes) != 1 or not keys:
        return None
    count = part[keys[0]]
    if not _fits(groups[prefixes[0]], count):
        tried.append(f"{'.'.join((*path, keys[0]))} = {count}")
        return None
    return _Found(rule.name, prefixes[0], path, tuple(key for key in keys if part[key] == count), count)


def _alone(found: _Found, part: Mapping[str, Any]) -> _Found:
    """Return a stack without its sibling: counts that say the same go along, since caches are made by the other's."""
    keys = dict.fromkeys(
        (*found.count_keys, *(key for rule in shared.STACKS for key in rule.count_keys if part.get(key) == found.count))
    )
    return msgspec.structs.replace(found, count_keys=tuple(keys))


def _counts(part: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield what may be the layer count, with every key that says it."""
    for key in shared.COUNT_KEYS:
        if isinstance(part.get(key), int):
            yield tuple(other for other in shared.COUNT_KEYS if part.get(other) == part[key]), part[key]
    for key in shared.LENGTH_KEYS:
        if isinstance(part.get(key), list | str):
            yield (), len(part[key])


def _fits(group: Group, count: int) -> bool:
    """Whether layers are numbered from 0, without holes, and are at least as many as the config says."""
    return len(group) >= count and set(group) == set(range(len(group)))


def _prefix_with(groups: Mapping[str, Group], count: int) -> str | None:
    """Return the prefix with this many layers, or with others behind; of several the one with the most parameters."""
    fitting = [prefix for prefix, group in groups.items() if _fits(group, count) and count > 0]
    fitting = [prefix for prefix in fitting if not re.search(shared.OTHER_TOWERS, prefix)] or fitting
    exact = [prefix for prefix in fitting if len(groups[prefix]) == count]
    fitting = exact or fitting
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return max(fitting, key=lambda prefix: _parameters(groups[prefix]))


def _refuse_siblings(prefix: str, groups: Mapping[str, Group], checkpoint: Checkpoint) -> None:
    parent = prefix.rpartition(".")[0]
    siblings = [
        other
        for other, group in groups.items()
        if other.rpartition(".")[0] == parent and set(group) == set(groups[prefix])
    ]
    if len(siblings) > 1:
        raise ArchitectureError(
            f"each layer's tensors lie under several prefixes: {', '.join(siblings)}",
            where=str(checkpoint.path),
            allowed="one numbered prefix that holds all of a layer",
            hint="this kind of model cannot be edited",
        )


def _parameters(group: Group) -> int:
    return sum(one.parameters for runs in group.values() for run in runs for one in run.types)


def _stack(found: _Found, group: Group, config: Mapping[str, Any], family: Family) -> Stack:
    count = found.count
    part: Any = config
    for key in found.path:
        part = part[key]
    names = LayerNames("quantization_config", found.prefix.rpartition(".")[2])
    root: list[LayerField] = [names] if found.path and names.read(config, count) is not None else []
    fields = [field for field in (*family.fields, names) if field.read(part, count) is not None]
    known = {key for field in family.fields for key in (field.key, *field.replaces)}
    unknown = [name for name, value in part.items() if name not in known and _describes_layers(name, value, count)]
    fields += [PerLayerList(name) for name in unknown]
    readings = {
        field.key: field.read(where, count) or () for where, some in ((part, fields), (config, root)) for field in some
    }
    settings = [{key: values[index] for key, values in readings.items()} for index in range(count)]
    layers = layers_of([group[index] for index in range(len(group))])
    unexplained = _unexplained([layer.layout for layer in layers[:count]], settings)
    if unexplained:
        fields.append(unexplained)
        settings = [
            {**setting, unexplained.key: build} for setting, build in zip(settings, unexplained.builds, strict=True)
        ]
    tail = layers[count:]
    return Stack(
        name=found.name,
        prefix=found.prefix,
        config_path=found.path,
        count_keys=found.count_keys,
        layers=layers[:count],
        settings=tuple(settings),
        fields=tuple(fields),
        root_fields=tuple(root),
        tail=tail,
        notes=tuple(_notes(unknown, tail, count)),
    )


def _unexplained(layouts: Sequence[Layout], settings: Sequence[Mapping[str, Any]]) -> UnexplainedDifference | None:
    """Find layers of which the config says the same, but which are built differently."""
    known = {
        layout: frozenset((suffix, one.shape) for suffix, one in layout.types.items())
        for layout in dict.fromkeys(layouts)
    }
    builds = [known[layout] for layout in layouts]
    kinds = {build: number for number, build in enumerate(dict.fromkeys(builds))}
    seen: dict[str, int] = {}
    clash = any(
        seen.setdefault(repr(setting), kinds[build]) != kinds[build]
        for setting, build in zip(settings, builds, strict=True)
    )
    return UnexplainedDifference(tuple(kinds[build] for build in builds)) if clash else None


def _notes(unknown: Sequence[str], tail: Sequence[Any], count: int) -> Iterator[str]:
    for name in unknown:
        yield f"config field {name}, unknown to surgeon, has one entry per layer: they travel with the layers"
    if tail:
        yield f"{len(tail)} are numbered behind the {count} layers that the config counts: they stay behind the last"


def _describes_layers(name: str, value: Any, count: int) -> bool:
    return name not in shared.NOT_PER_LAYER and isinstance(value, list) and len(value) == count and count > 1
