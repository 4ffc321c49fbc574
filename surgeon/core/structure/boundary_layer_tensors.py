"""Tensors that transformers builds only in the first or the last layer, or only elsewhere, and no config field says so.

They are declared as fields that write nothing: whether layers fit the places they come to is checked in
`plan/boundary_layer_tensors.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from surgeon.core.structure.layer_fields import Config


class EndTensor(msgspec.Struct, frozen=True):
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


class SharedTensors(msgspec.Struct, frozen=True):
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
