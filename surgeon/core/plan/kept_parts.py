"""A draft of which layers lose some of their experts, neurons or heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from surgeon.core.parts.division import PartKind
from surgeon.core.plan.draft import Draft, Layer, Part
from surgeon.core.plan.layer_layouts import division_of
from surgeon.core.plan.layer_means import refuse_adapted
from surgeon.core.plan.part_counts import per_layer_field
from surgeon.core.structure.structure import Stack
from surgeon.errors import RecipeError


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
