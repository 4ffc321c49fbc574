"""How a checkpoint is built: stacks of layers, the role of each tensor, and what the config says about each layer.

A `Family` is what differs between model families, as data; a `Structure` is one checkpoint read with its family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.structure.layer_fields import LayerField
from surgeon.core.structure.layouts import LayerTensors, Layout
from surgeon.core.structure.part_rules import PartRules
from surgeon.errors import ArchitectureError, SelectionError

OTHER = "other"
"""The role of a tensor that no rule names: it travels with its layer, and no operation touches it by role."""

SUBLAYERS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention.output", "cross_attention.output", "mixer.output", "norm.post_attention"),
    "mlp": ("mlp.down", "experts.down", "norm.post_mlp"),
}
"""The halves of a layer, and the roles of the tensors through which each reaches the residual stream."""

_EXPERT = re.compile(r"((?:^|\.)experts)\.\d+\.")
"""Which expert a tensor is of: its number says nothing of the role, and there are hundreds."""


class Silence(msgspec.Struct, frozen=True):
    """How a layer is made an exact identity: every tensor of `role` becomes the constant `value`.

    Zero for a projection that writes into the residual stream. For a family that normalises a sublayer's output
    before adding it, the norm's weight instead: a zeroed projection would put the norm at 0, where its Jacobian is
    about 1/sqrt(eps) and the first training step explodes. Where the norm multiplies by 1 + w the value is -1.
    """

    role: str
    value: float = 0.0


class StackRule(msgspec.Struct, frozen=True):
    """Layers that have a count of their own: what their prefix looks like, and the config keys of the count."""

    name: str
    prefix: str
    count_keys: tuple[str, ...]


class OutsideSlices(msgspec.Struct, frozen=True):
    """Tensors outside the layers that hold one slice for each layer.

    pattern: a regular expression for their names.   axis: the dimension along which the slices follow each other.
    width_key: the config key of a slice's width.
    """

    pattern: str
    axis: int
    width_key: str


class Family(msgspec.Struct, frozen=True):
    """What differs between model families.

    model_types: values of the config's `model_type` it covers; empty for the general one.
    roles: (regular expression for the tensor name within its layer, role), tried before the shared rules.
    fields: per-layer config fields beyond the shared ones; the same key replaces the shared one.
    silences: alternatives, best first; the first whose every role occurs in a layer is used for it. Without any, all
        tensors that write into the residual stream are set to 0, if the layer holds nothing whose role is unknown.
    no_identity: why no layer of this family can be made an identity, if so.
    unreadable: (config field, why its layers cannot be told from it), if so.
    renamed: whether transformers changes names in ways that `in_memory` does not tell, so that none can be selected.
    outside_slices: tensors outside the layers that hold one slice for each layer of the default stack.
    stacks: stacks with a count of their own, if the shared rules do not find them.
    parts: what is special where its layers are cut into experts, neurons or heads.
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
    fused: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    fused_by_head: bool = False
    in_memory: tuple[tuple[str, str], ...] = ()
    no_identity: str = ""
    unreadable: tuple[str, str] | None = None
    renamed: bool = False
    outside_slices: tuple[OutsideSlices, ...] = ()
    stacks: tuple[StackRule, ...] = ()
    parts: PartRules = PartRules()


@dataclass(frozen=True)
class Stack:
    """One run of repeated layers.

    prefix: what stands before the layer's number in tensor names, such as `model.layers`.
    config_path: keys that lead to the part of the config that describes it; () for the top.
    count_keys: the config keys of the layer count, within that part; none where a list's length is the count.
    layers: for each layer, its tensors by the name within the layer.
    settings: for each layer, what the per-layer config fields say about it, by field key.
    fields: the per-layer fields found in this config, in writing order.
    root_fields: the ones that are at the top of the config and not in that part.
    tail: what is stored behind the last layer under the numbers that follow, such as layers that predict several
        tokens ahead; it belongs to no layer and stays behind the last one.
    notes: what a person should know, such as a list that nobody declared but that travels along.
    """

    name: str
    prefix: str
    config_path: tuple[str, ...]
    count_keys: tuple[str, ...]
    layers: tuple[LayerTensors, ...]
    settings: tuple[Mapping[str, Any], ...]
    fields: tuple[LayerField, ...]
    root_fields: tuple[LayerField, ...] = ()
    tail: tuple[LayerTensors, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The ways in which its layers are built, each once."""
        return tuple(dict.fromkeys(layer.layout for layer in self.layers))

    def tensor_name(self, position: int, suffix: str) -> str:
        """Return the full name of a tensor of the layer at `position`."""
        return f"{self.prefix}.{position}.{suffix}"


@dataclass(frozen=True)
class Structure:
    """One checkpoint, understood.

    `outside` holds every tensor that belongs to no layer; `outputs` are the roles that write into the residual stream.
    """

    checkpoint: Checkpoint
    family: Family
    stacks: Mapping[str, Stack]
    outside: Mapping[str, Tensor]
    role_rules: tuple[tuple[re.Pattern[str], str], ...]
    default_stack: str
    outputs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @cached_property
    def sliced(self) -> Mapping[str, OutsideSlices]:
        """Tensors outside the layers that hold one slice for each layer, by name."""
        return {
            name: rule for name in self.outside for rule in self.family.outside_slices if re.search(rule.pattern, name)
        }

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
        alike = _EXPERT.sub(r"\1.0.", suffix)
        if alike not in self._roles:
            matching = (role for pattern, role in self.role_rules if pattern.fullmatch(alike))
            self._roles[alike] = next(matching, OTHER)
        self._roles[suffix] = self._roles[alike]
        return self._roles[suffix]

    @cached_property
    def _roles(self) -> dict[str, str]:
        return {}

    def roles_of(self, layout: Layout) -> Mapping[str, str]:
        """Return the role of each of a layer's tensors."""
        if layout not in self._layout_roles:
            self._layout_roles[layout] = {suffix: self.role(suffix) for suffix in layout.types}
        return self._layout_roles[layout]

    @cached_property
    def _layout_roles(self) -> dict[Layout, Mapping[str, str]]:
        return {}

    def silence(self, layer: LayerTensors) -> tuple[Silence, ...]:
        """Return the constants that make this layer an identity, or () if none is known to."""
        if layer.layout not in self._silences:
            self._silences[layer.layout] = self._silence(layer)
        return self._silences[layer.layout]

    @cached_property
    def _silences(self) -> dict[Layout, tuple[Silence, ...]]:
        return {}

    def _silence(self, layer: LayerTensors) -> tuple[Silence, ...]:
        if self.no_identity(layer):
            return ()
        present = set(self.roles_of(layer.layout).values())
        if self.family.silences:
            return self._declared_silence(present)
        return tuple(Silence(role) for role in self.outputs if role in present)

    def no_identity(self, layer: LayerTensors) -> str:
        """Say why a layer cannot be made an identity; empty if it can."""
        if self.family.no_identity:
            return self.family.no_identity
        roles, types = self.roles_of(layer.layout), layer.layout.types
        present = set(roles.values())
        if self.family.silences:
            return "" if self._declared_silence(present) else "it lacks the tensors that silence a layer of this family"
        unknown = [suffix for suffix, role in roles.items() if role == OTHER and len(types[suffix].shape) >= 2]
        if unknown:
            return f"it is not known what its tensor {unknown[0]!r} does"
        if not present & set(self.outputs):
            return "no tensors are known that write its output"
        return ""

    def _declared_silence(self, present: set[str]) -> tuple[Silence, ...]:
        fits = (way for way in self.family.silences if all(silence.role in present for silence in way))
        return next(fits, ())

    def quiet(self, layer: LayerTensors, sublayers: Iterable[str]) -> tuple[Silence, ...]:
        """Return the constants that make sublayers of a layer, of `SUBLAYERS`, put out zeros.

        Raises:
            ArchitectureError: it has no such sublayer, or it is not known which tensors write what it puts out.
        """
        roles, types = self.roles_of(layer.layout), layer.layout.types
        present = set(roles.values())
        declared = self._declared_silence(present)
        unknown = [suffix for suffix, role in roles.items() if role == OTHER and len(types[suffix].shape) >= 2]
        if unknown and not declared:
            raise ArchitectureError(
                "it is not known what this tensor does in its layer", where=f"tensor {unknown[0]!r}",
                allowed="layers of which all matrices are known", hint="prune the whole layer instead",
            )  # fmt: skip
        found: list[Silence] = []
        for sublayer in sublayers:
            ways = [silence for silence in declared if silence.role in SUBLAYERS[sublayer]]
            own = ways or [Silence(role) for role in SUBLAYERS[sublayer] if role in present & set(self.outputs)]
            if not own:
                raise ArchitectureError(
                    f"no tensors are known that write what its {sublayer} puts out",
                    where=f"a layer of model_type {self.model_type}",
                    allowed=f"layers with {sublayer}", hint="choose other layers, or prune this one",
                )  # fmt: skip
            found += own
        return tuple(found)

    def memory_names(self, names: Iterable[str]) -> list[str]:
        """Return the names that tensors have among the parameters of the loaded model, each once.

        Raises:
            ArchitectureError: they are not known for this family.
        """
        if self.family.renamed:
            raise ArchitectureError(
                "tensors have other names once they are loaded, which are not known",
                where=f"model_type {self.model_type}",
                allowed="prune, expand and reorder, where its config can say the result",
                hint="freeze and masked_lora are not possible",
            )
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
        for layout in dict.fromkeys(layout for stack in self.stacks.values() for layout in stack.layouts):
            for suffix, role in self.roles_of(layout).items():
                if role != OTHER and len(layout.types[suffix].shape) >= 2:
                    found[role] = None
        return tuple(found)
