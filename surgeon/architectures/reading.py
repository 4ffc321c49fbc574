"""Reads a checkpoint's structure: which tensors form layers, and what the config says about each of them.

Works from names and shapes; a family contributes only what is special about it. What cannot be understood is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from surgeon.architectures import shared
from surgeon.core.checkpoint import Checkpoint, Tensor
from surgeon.core.layer_fields import EachLayer, LayerField
from surgeon.core.registry import modules_of
from surgeon.core.structure import Family, Stack, Structure
from surgeon.errors import ArchitectureError

_NUMBERED = re.compile(r"(?P<prefix>.*?)\.(?P<index>\d+)\.(?P<suffix>.+)")
Groups = dict[str, dict[int, dict[str, Tensor]]]


@cache
def families() -> dict[str, Family]:
    """Return every declared family by model type."""
    found: dict[str, Family] = {}
    for module in modules_of("surgeon.architectures"):
        family = getattr(module, "FAMILY", None)
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
    special = families().get(str(checkpoint.config.get("model_type")), Family())
    family = Family(
        model_types=special.model_types,
        roles=(*special.roles, *shared.ROLES),
        fields=_merge_fields(special.fields),
        silences=(*special.silences, *shared.RESIDUAL_OUTPUTS),
        transposed=special.transposed,
        fused=special.fused,
        fused_by_head=special.fused_by_head,
        in_memory=special.in_memory,
    )
    stack = _main_stack(checkpoint, family)
    inside = {tensor.name for layer in stack.layers for tensor in layer.values()}
    return Structure(
        checkpoint=checkpoint,
        family=family,
        stacks={stack.name: stack},
        outside={name: tensor for name, tensor in checkpoint.tensors.items() if name not in inside},
        role_rules=tuple((re.compile(pattern), role) for pattern, role in family.roles),
        default_stack=stack.name,
    )


def _merge_fields(special: tuple[LayerField, ...]) -> tuple[LayerField, ...]:
    keys = {field.key for field in special}
    return (*special, *(field for field in shared.FIELDS if field.key not in keys))


def _main_stack(checkpoint: Checkpoint, family: Family) -> Stack:
    groups = _numbered_groups(checkpoint.tensors)
    tried: list[str] = []
    for path, part in _config_parts(checkpoint.config):
        for key in shared.COUNT_KEYS:
            count = part.get(key)
            if not isinstance(count, int):
                continue
            prefix = _prefix_with(groups, count)
            if prefix is not None:
                return _stack(prefix, groups[prefix], path, key, part, family)
            tried.append(f"{'.'.join((*path, key))} = {count}")
    found = ", ".join(f"{prefix}.0-{len(group) - 1}" for prefix, group in groups.items()) or "none"
    raise ArchitectureError(
        f"no run of layers fits the config ({'; '.join(tried) or 'which gives no layer count'}); numbered tensors: {found}",
        where=str(checkpoint.path), allowed="tensors named PREFIX.0.… to PREFIX.(count-1).…",
        hint="the checkpoint is incomplete, or of a kind surgeon does not know",
    )


def _numbered_groups(tensors: Mapping[str, Tensor]) -> Groups:
    groups: Groups = {}
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


def _prefix_with(groups: Groups, count: int) -> str | None:
    """Return the prefix whose numbers are exactly 0 to count-1; of several the one with the most parameters."""
    fitting = [prefix for prefix, group in groups.items() if set(group) == set(range(count))]
    return max(fitting, key=lambda prefix: _parameters(groups[prefix]), default=None)


def _parameters(group: Mapping[int, Mapping[str, Tensor]]) -> int:
    return sum(tensor.parameters for layer in group.values() for tensor in layer.values())


def _stack(
    prefix: str, group: Mapping[int, Mapping[str, Tensor]], path: tuple[str, ...], key: str,
    part: Mapping[str, Any], family: Family,
) -> Stack:  # fmt: skip
    count = len(group)
    readings = {field.key: (field, field.read(part, count)) for field in family.fields}
    fields = [field for field, values in readings.values() if values is not None]
    unknown = [name for name, value in part.items() if name not in readings and _describes_layers(name, value, count)]
    readings.update({name: (EachLayer(name), tuple(part[name])) for name in unknown})
    fields += [EachLayer(name) for name in unknown]
    return Stack(
        name="layers",
        prefix=prefix,
        config_path=path,
        count_key=key,
        layers=tuple(group[index] for index in range(count)),
        settings=tuple(
            {name: values[index] for name, (_, values) in readings.items() if values is not None} for index in range(count)
        ),
        fields=tuple(fields),
        notes=tuple(
            f"config field {name} has one entry per layer and is not known to surgeon: its entries travel with the layers"
            for name in unknown
        ),
    )


def _describes_layers(name: str, value: Any, count: int) -> bool:
    return name not in shared.NOT_PER_LAYER and isinstance(value, list) and len(value) == count and count > 1
