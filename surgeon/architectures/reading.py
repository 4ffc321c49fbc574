"""Reads a checkpoint's structure: which tensors form layers, and what the config says about each of them.

Works from names and shapes; a family contributes only what is special about it. What cannot be understood is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from surgeon.architectures import shared
from surgeon.core.checkpoint.checkpoint import Checkpoint, Tensor
from surgeon.core.registry import modules_of
from surgeon.core.structure.layer_dependencies import UnexplainedDifference
from surgeon.core.structure.layer_fields import LayerField, PerLayerList
from surgeon.core.structure.layer_names import LayerNames
from surgeon.core.structure.structure import Family, Stack, StackRule, Structure
from surgeon.errors import ArchitectureError

_NUMBERED = re.compile(r"(?P<prefix>.*?)\.(?P<index>\d+)\.(?P<suffix>.+)")
Group = Mapping[int, Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Found:
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


def read_structure(checkpoint: Checkpoint) -> Structure:
    """Understand a checkpoint from its config and headers.

    Raises:
        ArchitectureError: its layers cannot be told, or a per-layer config field contradicts the weights.
    """
    groups = _numbered_groups(checkpoint.tensors)
    found = _find_stacks(checkpoint, groups)
    family = _family(checkpoint.config, found[0])
    stacks = {one.name: _stack(one, groups[one.prefix], checkpoint.config, family) for one in found}
    inside = {
        tensor.name for stack in stacks.values() for layer in (*stack.layers, *stack.tail) for tensor in layer.values()
    }
    return Structure(
        checkpoint=checkpoint,
        family=family,
        stacks=stacks,
        outside={name: tensor for name, tensor in checkpoint.tensors.items() if name not in inside},
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
    return replace(
        special,
        roles=(*special.roles, *shared.ROLES),
        in_memory=(*(rule for family in declared for rule in family.in_memory), *shared.IN_MEMORY),
        fields=(*special.fields, *(field for field in shared.FIELDS if field.key not in own)),
    )


def _numbered_groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, dict[str, Tensor]]]:
    groups: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        match = _NUMBERED.fullmatch(name)
        if match:
            layer = groups.setdefault(match["prefix"], {}).setdefault(int(match["index"]), {})
            layer[match["suffix"]] = tensor
    return groups


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
    return replace(found, count_keys=tuple(keys))


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
    return max(exact or fitting, key=lambda prefix: _parameters(groups[prefix]), default=None)


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
    return sum(tensor.parameters for layer in group.values() for tensor in layer.values())


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
    layers = tuple(group[index] for index in range(count))
    unexplained = _unexplained(layers, settings)
    if unexplained:
        fields.append(unexplained)
        settings = [
            {**setting, unexplained.key: build} for setting, build in zip(settings, unexplained.builds, strict=True)
        ]
    tail = tuple(group[index] for index in range(count, len(group)))
    return Stack(
        name=found.name,
        prefix=found.prefix,
        config_path=found.path,
        count_keys=found.count_keys,
        layers=layers,
        settings=tuple(settings),
        fields=tuple(fields),
        root_fields=tuple(root),
        tail=tail,
        notes=tuple(_notes(unknown, tail, count)),
    )


def _unexplained(
    layers: Sequence[Mapping[str, Tensor]], settings: Sequence[Mapping[str, Any]]
) -> UnexplainedDifference | None:
    """Find layers of which the config says the same, but which are built differently."""
    builds = [frozenset((suffix, tensor.shape) for suffix, tensor in layer.items()) for layer in layers]
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
