"""Tensors that transformers builds only in the first or the last layer, or only elsewhere, and no config field says so.

A layer that comes to such a place, or leaves it, gets a constant in place of what it lacks, or goes without what it
has, where that changes nothing. Else it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.core.checkpoint import Tensor
from surgeon.core.draft import Identity, Source, Truncated, base_tensors
from surgeon.core.layer_fields import Config
from surgeon.core.structure import Stack
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


def tensors_at(stack: Stack, source: Source, position: int, count: int) -> dict[str, tuple[Tensor, float | None]]:
    """Return the tensors of a layer at a position, and the constant of those that its source lacks, else None.

    Raises:
        ArchitectureError: the layer would not be the same there.
    """
    found: dict[str, tuple[Tensor, float | None]] = {
        suffix: (tensor, None) for suffix, tensor in base_tensors(source, stack).items()
    }
    for field in stack.fields:
        if isinstance(field, EndTensor):
            _fit(field, found, stack, source, position, count)
    return found


def _fit(
    field: EndTensor,
    found: dict[str, tuple[Tensor, float | None]],
    stack: Stack,
    source: Source,
    position: int,
    count: int,
) -> None:
    known = {
        suffix: tensor
        for layer in stack.layers
        for suffix, tensor in layer.items()
        if re.fullmatch(field.pattern, suffix)
    }
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
    found.update((suffix, (known[suffix], constant)) for suffix in known.keys() - own)


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
