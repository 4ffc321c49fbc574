"""Layers that come to a place where transformers builds other tensors: see `structure/boundary_layer_tensors.py`.

A layer that comes to such a place, or leaves it, gets a constant in place of what it lacks, or goes without what it
has, where that changes nothing. Else it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from surgeon.core.checkpoint.tensors import Tensor, TensorType
from surgeon.core.plan.draft import Identity, Layer, Original, Part, Source, Truncated
from surgeon.core.plan.expressions import Copy, Expression, Fill
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.structure.boundary_layer_tensors import EndTensor, SharedTensors
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError

Found = dict[str, tuple[Tensor | TensorType, Expression | None]]


def belongs_to_places(stack: Stack) -> bool:
    """Whether what a layer consists of depends on where it stands."""
    return any(isinstance(field, EndTensor | SharedTensors) for field in stack.fields)


def tensors_at(structure: Structure, stack: Stack, layers: Sequence[Layer], position: int) -> Found:
    """Return the types of the tensors of the layer at a position, and how those are made that its source lacks.

    Raises:
        ArchitectureError: the layer would not be the same there.
    """
    source = layers[position].source
    found: Found = {suffix: (one, None) for suffix, one in layout_of(structure, stack, source).types.items()}
    for field in stack.fields:
        if isinstance(field, EndTensor):
            _fit(field, found, stack, source, position, len(layers))
        if isinstance(field, SharedTensors):
            _hold(field, found, stack, layers, position)
    return found


def _hold(field: SharedTensors, found: Found, stack: Stack, layers: Sequence[Layer], position: int) -> None:
    known = _matching(field.pattern, stack)
    if sum(not known.keys().isdisjoint(layer) for layer in stack.layers) > 1:
        return  # stored with each of them: they may differ, and travel with their layers
    held = next((suffix for suffix in known if suffix in found), None)
    first = next((at for at, layer in enumerate(layers) if layer.settings[field.key][0]), -1)
    if position == first:
        # What another than the base's holder takes over is as the base has it.
        found.update((suffix, (tensor, Copy(tensor))) for suffix, tensor in known.items() if held is None)
        return
    if held and not isinstance(layers[position].source, Original | Identity):
        raise ArchitectureError(
            f"one layer holds it for all, which was changed and would come to position {position} behind another",
            where=field.key,
            allowed="edits that leave it the first of them",
            hint="do not move, repeat or remove it once it is changed",
        )
    for suffix in known:
        found.pop(suffix, None)


def _matching(pattern: str, stack: Stack) -> dict[str, Tensor]:
    return {
        suffix: tensor for layer in stack.layers for suffix, tensor in layer.items() if re.fullmatch(pattern, suffix)
    }


def _fit(field: EndTensor, found: Found, stack: Stack, source: Source, position: int, count: int) -> None:
    known = _matching(field.pattern, stack)
    own, identity = known.keys() & found.keys(), _is_identity(source)
    if not field.belongs(position, count):
        if own and not (identity or field.spare):
            raise _refusal(field, position)
        for suffix in own:
            del found[suffix]
        return
    constant = field.silent if identity else field.neutral
    if (known.keys() - own and constant is None) or (own and identity and not field.elsewhere):
        raise _refusal(field, position)
    if constant is not None:
        found.update((suffix, (known[suffix], Fill(constant))) for suffix in known.keys() - own)


def _is_identity(source: Source) -> bool:
    """Whether a layer passes its input through: one that was trained since does not."""
    while isinstance(source, Truncated | Part):
        source = source.of
    return isinstance(source, Identity)


def _refusal(field: EndTensor, position: int) -> ArchitectureError:
    end = "last" if field.last else "first"
    which = f"all layers but the {end}" if field.elsewhere else f"only the {end} layer"
    return ArchitectureError(
        f"{which} can have it, no config field says otherwise, and another layer would come to position {position}",
        where=field.key,
        allowed=f"edits that leave the {end} layer where it is",
        hint="choose other layers",
    )
