"""How a checkpoint is built: stacks of layers, the role of each tensor, and what the config says about each layer.

A `Family` is what differs between model families, as data; a `Structure` is one checkpoint read with its family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from surgeon.core.checkpoint import Checkpoint, Tensor
from surgeon.core.layer_fields import LayerField
from surgeon.errors import SelectionError

OTHER = "other"
"""The role of a tensor that no rule names: it travels with its layer, and no operation touches it by role."""


@dataclass(frozen=True)
class Silence:
    """How a layer is made an exact identity: every tensor of `role` becomes the constant `value`.

    Zero for a projection that writes into the residual stream. For a family that normalises a sublayer's output
    before adding it, the norm's weight instead: a zeroed projection would put the norm at 0, where its Jacobian is
    about 1/sqrt(eps) and the first training step explodes. Where the norm multiplies by 1 + w the value is -1.
    """

    role: str
    value: float = 0.0


@dataclass(frozen=True)
class Family:
    """What differs between model families.

    model_types: values of the config's `model_type` it covers; empty for the general one.
    roles: (regular expression for the tensor name within its layer, role), tried before the shared rules.
    fields: per-layer config fields beyond the shared ones; the same key replaces the shared one.
    silences: alternatives, best first; the first whose every role occurs in a layer is used for it.
    transposed: roles stored as (in, out) rather than (out, in), as GPT-2's Conv1D does.
    fused: role to the roles it holds, in order, along its output dimension.
    fused_by_head: whether query, key and value follow each other head by head rather than one after another.
    in_memory: (regular expression, replacement) for tensor names that transformers changes when it loads them, such
        as experts that are stored one by one and stacked in memory.
    """

    model_types: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    fields: tuple[LayerField, ...] = ()
    silences: tuple[tuple[Silence, ...], ...] = ()
    transposed: frozenset[str] = frozenset()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused_by_head: bool = False
    in_memory: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stack:
    """One run of repeated layers.

    prefix: what stands before the layer's number in tensor names, such as `model.layers`.
    config_path: keys that lead to the part of the config that describes it; () for the top.
    count_key: the config key of the layer count, within that part.
    layers: for each layer, its tensors by the name within the layer.
    settings: for each layer, what the per-layer config fields say about it, by field key.
    fields: the per-layer fields found in this config, in writing order.
    notes: what a person should know, such as a list that nobody declared but that travels along.
    """

    name: str
    prefix: str
    config_path: tuple[str, ...]
    count_key: str
    layers: tuple[Mapping[str, Tensor], ...]
    settings: tuple[Mapping[str, Any], ...]
    fields: tuple[LayerField, ...]
    notes: tuple[str, ...] = ()

    def tensor_name(self, position: int, suffix: str) -> str:
        """Return the full name of a tensor of the layer at `position`."""
        return f"{self.prefix}.{position}.{suffix}"


@dataclass(frozen=True)
class Structure:
    """One checkpoint, understood. `outside` holds every tensor that belongs to no layer."""

    checkpoint: Checkpoint
    family: Family
    stacks: Mapping[str, Stack]
    outside: Mapping[str, Tensor]
    role_rules: tuple[tuple[re.Pattern[str], str], ...]
    default_stack: str
    problems: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The config's `model_type`."""
        return str(self.checkpoint.config.get("model_type", "unknown"))

    def stack(self, name: str | None = None) -> Stack:
        """Return a stack by name, or the default one.

        Raises:
            SelectionError: there is no stack of that name.
        """
        wanted = name or self.default_stack
        if wanted not in self.stacks:
            raise SelectionError(f"no stack {wanted!r}", where="stack", allowed=", ".join(self.stacks))
        return self.stacks[wanted]

    def role(self, suffix: str) -> str:
        """Return the role of a tensor from its name within its layer; a bias has its weight's role."""
        return self._roles.get(suffix) or self._role(suffix)

    def _role(self, suffix: str) -> str:
        role = next((role for pattern, role in self.role_rules if pattern.fullmatch(suffix)), OTHER)
        self._roles[suffix] = role
        return role

    @cached_property
    def _roles(self) -> dict[str, str]:
        return {}

    def silence(self, layer: Mapping[str, Tensor]) -> tuple[Silence, ...]:
        """Return the constants that make this layer an identity, or () if this family declares no way that fits."""
        present = {self.role(suffix) for suffix in layer}
        fits = (way for way in self.family.silences if all(silence.role in present for silence in way))
        return next(fits, ())

    def memory_names(self, names: Iterable[str]) -> list[str]:
        """Return the names that tensors have among the parameters of the loaded model, each once."""
        found: dict[str, None] = {}
        for name in names:
            for pattern, replacement in self.family.in_memory:
                name = re.sub(pattern, replacement, name)  # noqa: PLW2901 - the rules apply one after another
            found[name] = None
        return list(found)

    def stack_config(self, stack: Stack) -> Mapping[str, Any]:
        """Return the part of the config that describes a stack."""
        config: Any = self.checkpoint.config
        for key in stack.config_path:
            config = config[key]
        return config  # type: ignore[no-any-return]

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """All roles of two-dimensional or larger weights in layers, in the order of their first occurrence."""
        found: dict[str, None] = {}
        for stack in self.stacks.values():
            for layer in stack.layers:
                for suffix, tensor in layer.items():
                    if len(tensor.shape) >= 2 and self.role(suffix) != OTHER:
                        found[self.role(suffix)] = None
        return tuple(found)
