"""Layers that lose some of their experts, neurons or heads, and what the config says of how many are left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from surgeon.core.parts.counts import count_fields, counted, field_names, says
from surgeon.core.parts.divide import divide
from surgeon.core.parts.division import PART_KINDS, PartKind
from surgeon.core.plan.draft import Draft, Layer, Part
from surgeon.core.plan.layer_layouts import division_of, layout_of, parts_in
from surgeon.core.plan.layer_means import refuse_adapted
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError, RecipeError

_AHEAD = re.compile(r"(?:^|[._])(?:mtp|nextn)(?:[._]|$)")
"""In the names of tensors outside the layers: those of layers that predict several tokens ahead."""
_PREDICTED = "num_nextn_predict_layers"


def write_counts(config: dict[str, Any], draft: Draft, stack: Stack, *, repeated: bool = False) -> None:
    """Say in a stack's part of the config how many parts its layers have, where any were cut.

    repeated: whether `config` is another part that may say the same; what it does not say is left out there.

    Raises:
        ArchitectureError: the config counts them once for all layers, and they differ; or it counts others' too.
    """
    structure, layers = draft.structure, draft.stacks[stack.name]
    cut = {kind for layer in layers for kind in parts_in(layer.source)}
    for kind in (kind for kind in PART_KINDS if kind in cut):
        _refuse_others(structure, stack, kind)
        if per_layer_field(structure, stack, kind):
            continue
        fields = fields_of(structure, stack, kind)
        counts = {
            at: division.count
            for at, layer in enumerate(layers)
            if (division := divide(structure, structure.stack_config(stack), _layout(draft, stack, layer), kind))
        }
        _refuse_unequal(counts, kind, fields)
        for field, value in counted(structure.stack_config(stack), kind, fields, next(iter(counts.values()))).items():
            if repeated and says(config, field, None):
                continue
            *path, key = field.split(".")
            part = config
            for step in path:
                part = part[step]
            part[key] = value


def _layout(draft: Draft, stack: Stack, layer: Layer) -> Any:
    return layout_of(draft.structure, stack, layer.source)


def base_counts(structure: Structure, stack: Stack, kind: PartKind) -> Mapping[int, int]:
    """Return how many parts of a kind the layers of the base have that have any, by position.

    Raises:
        ArchitectureError: none has any, or one cannot be divided.
    """
    config = structure.stack_config(stack)
    found = {
        at: division.count
        for at, layer in enumerate(stack.layers)
        if (division := divide(structure, config, layer.layout, kind))
    }
    if not found:
        raise ArchitectureError(
            f"no layer of it has {kind} that can be cut",
            where=f"model_type {structure.model_type}",
            allowed=f"models with {kind} in their layers",
            hint="prune layers instead",
        )
    return found


def per_layer_field(structure: Structure, stack: Stack, kind: PartKind) -> str | None:
    """Return the config field that says for each layer on its own how many parts of a kind it has, if there is one."""
    counts = base_counts(structure, stack, kind)
    for field in stack.fields:
        if field.key in field_names(structure, kind) and all(
            stack.settings[at][field.key] == count for at, count in counts.items()
        ):
            return field.key
    return None


def fields_of(structure: Structure, stack: Stack, kind: PartKind) -> tuple[str, ...]:
    """Return the config fields that say once for all layers how many parts of a kind they have.

    Raises:
        ArchitectureError: none does, or it means others too.
    """
    counts = base_counts(structure, stack, kind)
    fields = count_fields(structure, stack, kind, max(counts.values()))
    _refuse_unequal(counts, kind, fields)
    if kind == "neurons":
        _refuse_width_of_experts(structure, stack, fields, max(counts.values()))
    return fields


def _refuse_unequal(counts: Mapping[int, int], kind: PartKind, fields: tuple[str, ...]) -> None:
    by_count: dict[int, list[int]] = {}
    for at, count in counts.items():
        by_count.setdefault(count, []).append(at)
    if len(by_count) > 1:
        said = "; ".join(f"{count} in {_few(layers)}" for count, layers in sorted(by_count.items()))
        raise ArchitectureError(
            f"is one number for all layers, which would have different numbers of {kind}: {said}",
            where=f"config field {fields[0]}",
            allowed="as many in each layer",
            hint="choose as many in every layer, by a share or a number of each",
        )


def _few(layers: list[int]) -> str:
    shown = ", ".join(map(str, layers[:4])) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
    return f"layer{'s' if len(layers) > 1 else ''} {shown}"


def _refuse_width_of_experts(structure: Structure, stack: Stack, fields: tuple[str, ...], count: int) -> None:
    """Refuse a width that experts have too: one field may say both."""
    for layout in stack.layouts:
        roles = structure.roles_of(layout)
        inner = [name for name, role in roles.items() if role.startswith(("experts", "mlp"))]
        if any(role.startswith("experts") for role in roles.values()) and any(
            count in (size, 2 * size) for name in inner for size in layout.types[name].shape
        ):
            raise ArchitectureError(
                "may be the width of experts too, which stay as they are",
                where=f"config field {fields[0]}",
                allowed="fields that say the width of dense layers alone",
                hint="cut experts instead: prune_experts",
            )


def _refuse_others(structure: Structure, stack: Stack, kind: PartKind) -> None:
    """Refuse to change a count that means other layers too: those that predict tokens ahead, those of other stacks."""
    config = structure.stack_config(stack)
    ahead = next((name for name in structure.outside if _AHEAD.search(name)), None)
    if ahead is None and any(divide(structure, config, layer.layout, kind) for layer in stack.tail):
        ahead = stack.tensor_name(len(stack.layers), next(iter(stack.tail[0])))
    if ahead is not None:
        raise ArchitectureError(
            f"layers that predict tokens ahead have the same number of {kind} in the config, and would keep more",
            where=f"config field {_PREDICTED}" if _PREDICTED in config else f"tensor {ahead!r}",
            allowed="models without such layers",
            hint="remove these layers from the checkpoint first",
        )
    own = [name for name in field_names(structure, kind) if name.startswith(f"{stack.name}_")]
    others = [other for other in structure.stacks.values() if other.config_path == stack.config_path]
    if len(others) > 1 and not own:
        raise ArchitectureError(
            f"several stacks share one count of {kind}", where=", ".join(other.name for other in others),
            allowed="models whose stacks are counted apart", hint="prune layers instead",
        )  # fmt: skip


def without_parts(draft: Draft, kind: PartKind, gone: Mapping[int, Sequence[int]], stack: str | None = None) -> Draft:
    """Return the draft without some parts of its layers; `gone` has their numbers by the layer's position.

    Raises:
        RecipeError: none would go, or none would stay; or what was learned on the whole layer does not fit the rest.
        ArchitectureError: a layer cannot be cut.
    """
    found = draft.structure.stack(stack)
    field = per_layer_field(draft.structure, found, kind)
    if not any(gone.values()):
        raise RecipeError(f"chooses no {kind}", where=kind, hint="choose a larger share, or leave the step out")
    if draft.mask is not None:
        raise RecipeError(
            "there is a weight mask, which is of the whole layers", allowed="mask_weights after this step",
            hint="cut first, and choose the weights then",
        )  # fmt: skip
    layers = list(draft.layers(stack))
    for position, numbers in gone.items():
        if numbers:
            layers[position] = _cut(draft, found, layers[position], kind, numbers, field)
    return draft.with_layers(tuple(layers), stack)


def _cut(draft: Draft, stack: Stack, layer: Layer, kind: PartKind, gone: Sequence[int], field: str | None) -> Layer:
    division = division_of(draft.structure, stack, layer.source, kind)
    lost = set(gone)
    kept = tuple(number for number in range(division.count) if number not in lost)
    if not kept:
        raise RecipeError(
            f"would leave layer {layer.key} without {kind}", where=kind, allowed="at least one stays",
            hint="choose fewer, or prune the layer",
        )  # fmt: skip
    touched = {draft.structure.role(name) for name in (*division.cuts, *division.owners)}
    refuse_adapted([layer], "the cut", touched)
    settings = layer.settings if field is None else {**layer.settings, field: len(kept)}
    return replace(layer, source=Part(layer.source, kind, kept), settings=settings)
