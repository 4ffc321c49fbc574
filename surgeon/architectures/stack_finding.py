"""Finds the stacks of a checkpoint: which numbered tensors form layers, and where the config counts them.

A count may be said in several places. transformers goes by the part of the config that describes the text model; the
top then only repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from surgeon.architectures import shared
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.registry import modules_of
from surgeon.core.structure.family import Family, StackRule
from surgeon.core.structure.layer_dependencies import TwoCounts
from surgeon.core.structure.layouts import Run
from surgeon.core.structure.structure import Twin
from surgeon.errors import ArchitectureError

Group = Mapping[int, Sequence[Run]]
Path = tuple[str, ...]


class Found(msgspec.Struct, frozen=True):
    """A run of layers: the rule that found it, where the config speaks of it, and how many layers that gives.

    implied: whether the count is another's, and not written.   twins: other parts that speak of it; without fields.
    conflict: set where another part gives another count.
    """

    name: str
    prefix: str
    path: Path
    count_keys: tuple[str, ...]
    count: int
    implied: bool = False
    twins: tuple[Twin, ...] = ()
    conflict: TwoCounts | None = None


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


def config_parts(config: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the parts of a config that may describe the layers, and the ways to them, the top first."""
    for path in shared.CONFIG_PARTS:
        part: Any = config
        for key in path:
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping):
            yield path, part


def find_stacks(checkpoint: Checkpoint, groups: Mapping[str, Group]) -> list[Found]:
    """Return the stacks, the default one first.

    Raises:
        ArchitectureError: no numbered tensors fit the config.
    """
    parts = dict(config_parts(checkpoint.config))
    tried: list[str] = []
    for path, part in parts.items():
        stacks = _stacks_in(path, part, groups, tried, checkpoint)
        if stacks:
            stacks = stacks if path else _nested(stacks, parts, groups, checkpoint)
            return [_with_twins(one, parts) for one in stacks]
    numbered = ", ".join(f"{prefix}.0-{len(group) - 1}" for prefix, group in groups.items()) or "none"
    texts = [prefix for prefix in groups if not re.search(shared.OTHER_TOWERS, prefix)]
    alone = f"write the layer count into config.json: {len(groups[texts[0]])}" if len(texts) == 1 and not tried else ""
    raise ArchitectureError(
        f"no run of layers fits the config ({'; '.join(tried) or 'it gives no layer count'}); numbered: {numbered}",
        where=str(checkpoint.path),
        allowed="tensors named PREFIX.0.… to PREFIX.(count-1).…",
        hint=alone or "the checkpoint is incomplete, or of a kind surgeon does not know",
    )


def _stacks_in(
    path: Path, part: Mapping[str, Any], groups: Mapping[str, Group], tried: list[str], checkpoint: Checkpoint
) -> list[Found]:
    """Return the stacks that one part of the config describes."""
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
            return [Found("layers", prefix, path, keys, count)]
        tried.append(f"{'.'.join((*path, *keys[:1]))} = {count}")
    return []


def _nested(
    stacks: list[Found], parts: Mapping[Path, Mapping[str, Any]], groups: Mapping[str, Group], checkpoint: Checkpoint
) -> list[Found]:
    """Return the stacks as the text model's own part describes them, where the top only repeats it."""
    for path in shared.TEXT_PARTS:
        if path not in parts:
            continue
        inner = _stacks_in(path, parts[path], groups, [], checkpoint)
        alike = [one.prefix for one in inner] == [one.prefix for one in stacks]
        if not alike or not all(one.count_keys for one in inner):
            continue
        exact = all(len(groups[one.prefix]) == one.count for one in inner)
        if exact or [one.count for one in inner] == [one.count for one in stacks]:
            return inner
    return stacks


def _with_twins(found: Found, parts: Mapping[Path, Mapping[str, Any]]) -> Found:
    """Return a stack with the other parts of the config that speak of the text model, where it is that."""
    if found.path and found.path not in shared.TEXT_PARTS:
        return found
    keys = _keys_of(found)
    twins = []
    for path, part in parts.items():
        if path == found.path or (path and path not in shared.TEXT_PARTS):
            continue
        odd = next((key for key in found.count_keys if _is_other_count(part.get(key), found.count)), None)
        if odd is not None:
            names = [".".join((*found.path, odd)), ".".join((*path, odd))]
            return msgspec.structs.replace(found, conflict=TwoCounts((names[0], names[1]), (found.count, part[odd])))
        stated = tuple(key for key in keys if part.get(key) == found.count)
        # Where a text model's own part does not count its layers, transformers takes the default of its class.
        twins.append(Twin(path, stated or (found.count_keys[:1] if path else ())))
    return msgspec.structs.replace(found, twins=tuple(twins))


def _is_other_count(value: Any, count: int) -> bool:
    return isinstance(value, int) and value != count


def _keys_of(found: Found) -> tuple[str, ...]:
    """Return the keys that may count a stack's layers."""
    rules = (rule.count_keys for rule in shared.STACKS if rule.name == found.name)
    return tuple(dict.fromkeys((*found.count_keys, *next(rules, shared.COUNT_KEYS))))


def _by_rule(
    rule: StackRule, path: tuple[str, ...], part: Mapping[str, Any], groups: Mapping[str, Group], tried: list[str]
) -> Found | None:
    prefixes = [
        prefix for prefix in groups if re.fullmatch(rule.prefix, prefix) and not re.search(shared.OTHER_TOWERS, prefix)
    ]
    own = [key for key in rule.count_keys if isinstance(part.get(key), int)]
    keys = own or [key for key in rule.implied if isinstance(part.get(key), int)]
    if len(prefixes) != 1 or not keys:
        return None
    count = part[keys[0]]
    if not _fits(groups[prefixes[0]], count):
        tried.append(f"{'.'.join((*path, keys[0]))} = {count}")
        return None
    written = tuple(key for key in own if part[key] == count) or rule.count_keys[:1]
    return Found(rule.name, prefixes[0], path, written, count, implied=not own)


def _alone(found: Found, part: Mapping[str, Any]) -> Found:
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
            # Elsewhere the class has a default, which would be the base's.
            counted = part.get("model_type") in shared.COUNTED_BY_LENGTH
            yield () if counted else shared.COUNT_KEYS[:1], len(part[key])


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
