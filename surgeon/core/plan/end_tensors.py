"""Tensors that transformers builds only in the first or the last layer, or only elsewhere, and no config field says so.

A layer that comes to such a place, or leaves it, gets a constant in place of what it lacks, or goes without what it
has, where that changes nothing. Else it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.core.checkpoint.checkpoint import Tensor
from surgeon.core.plan.draft import Identity, Layer, Original, Source, Truncated, base_tensors
from surgeon.core.plan.expressions import Copy, Expression, Fill
from surgeon.core.structure.layer_fields import Config
from surgeon.core.structure.structure import Stack
from surgeon.errors import ArchitectureError


@dataclass(frozen=True)
class EndTensor:
    """Tensors of the first layer or the last alone, or of all others alone.

    key: says in words what they are.   pattern: a regular expression for their names within the layer.
    last: whether the last layer is meant rather than the first.   elsewhere: whether all but that layer have them.
    neutral: the constant with which a layer that lacks them is the same; None if there is none.
    silent: the constant that an identity can have, which is the same with any; None where they act outside of it.
    spare: whether any layer says the same without them where they are not built; an identity always does.
    """

    key: str
    pattern: str
    last: bool = False
    elsewhere: bool = False
    neutral: float | None = None
    silent: float | None = None
    spare: bool = False
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the layer at that end: it explains why it is built differently."""
        del config
        return tuple(index == (count - 1 if self.last else 0) for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing; whether the layers fit their places is looked at tensor by tensor."""
        del values, config
        return {}

    def belongs(self, position: int, count: int) -> bool:
        """Whether a layer at this position is built with them."""
        return (position == (count - 1 if self.last else 0)) != self.elsewhere


@dataclass(frozen=True)
class SharedTensors:
    """Tensors that the first of some layers holds for all of them, such as Zamba's shared block.

    key: says in words what they are.   pattern: a regular expression for their names within the layer.
    members: gives the numbers of these layers.
    """

    key: str
    pattern: str
    members: Callable[[Config, int], Sequence[int]]
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return whether each layer is one of them, and whether it is the first."""
        members = self.members(config, count)
        return tuple((index in members, index == members[0]) for index in range(count)) if members else None

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing; who holds them is looked at tensor by tensor."""
        del values, config
        return {}


Found = dict[str, tuple[Tensor, Expression | None]]


def belongs_to_places(stack: Stack) -> bool:
    """Whether what a layer consists of depends on where it stands."""
    return any(isinstance(field, EndTensor | SharedTensors) for field in stack.fields)


def tensors_at(stack: Stack, layers: Sequence[Layer], position: int) -> Found:
    """Return the tensors of the layer at a position, and how those are made that its source lacks, else None.

    Raises:
        ArchitectureError: the layer would not be the same there.
    """
    source = layers[position].source
    found: Found = {suffix: (tensor, None) for suffix, tensor in base_tensors(source, stack).items()}
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
    while isinstance(source, Truncated):
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
