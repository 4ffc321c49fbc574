"""How a checkpoint is built: stacks of layers, the role of each tensor, and what the config says about each layer.

A `Family` is what differs between model families, as data; a `Structure` is one checkpoint read with its family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.tensors import Tensor, tensor_type
from surgeon.core.structure.companions import PackedWeight, packed_weights, plain_name
from surgeon.core.structure.family import Family, OutsideSlices, Silence, StackRule
from surgeon.core.structure.layer_fields import LayerField
from surgeon.core.structure.layer_runs import LayerRun
from surgeon.core.structure.layouts import LayerTensors, Layout
from surgeon.core.structure.quantisation import Quantisation, find_quantisation
from surgeon.errors import ArchitectureError, SelectionError

if TYPE_CHECKING:
    from surgeon.core.donors.donor import Donor

__all__ = ["OTHER", "Family", "OutsideSlices", "Silence", "Stack", "StackRule", "Structure", "Twin"]

OTHER = "other"
"""The role of a tensor that no rule names: it travels with its layer, and no operation touches it by role."""

SUBLAYERS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention.output", "cross_attention.output", "mixer.output", "norm.post_attention"),
    "mlp": ("mlp.down", "experts.down", "norm.post_mlp"),
}
"""The halves of a layer, and the roles of the tensors through which each reaches the residual stream."""

_ATTENTION = re.compile(r"attn|attention")
_EXPERT = re.compile(r"((?:^|\.)experts)\.\d+\.")
"""Which expert a tensor is of: its number says nothing of the role, and there are hundreds."""


class Twin(msgspec.Struct, frozen=True):
    """Another part of the config that describes a stack: the top beside `text_config`, or the other way round.

    path: the keys that lead to it.   count_keys: those of the layer count there; written where they are missing.
    fields: the per-layer fields that it states.
    """

    path: tuple[str, ...]
    count_keys: tuple[str, ...]
    fields: tuple[LayerField, ...] = ()

    def setting(self, field: LayerField) -> str:
        """Return the key by which a layer's settings hold what a field says of it here."""
        return f"{'.'.join(self.path) or 'top'}: {field.key}"


@dataclass(frozen=True)
class Stack:
    """One run of repeated layers.

    prefix: what stands before the layer's number in tensor names, such as `model.layers`.
    config_path: keys that lead to the part of the config that describes it; () for the top.
    count_keys: the config keys of the layer count, within that part; none where a list's length is the count.
    layers: for each layer, its tensors by the name within the layer.
    settings: for each layer, what the per-layer config fields say about it, by field key.
    fields: the per-layer fields found in this config, in writing order.
    twins: other parts of the config that say the same.   implied: whether its count is written nowhere, and follows.
    tail: what is stored behind the last layer under the numbers that follow, such as layers that predict several
        tokens ahead; it belongs to no layer and stays behind the last one.
    notes: what a person should know, such as a list that nobody declared but that travels along.
    donors: other models that layers of a draft come from, by their fingerprints.
    """

    name: str
    prefix: str
    config_path: tuple[str, ...]
    count_keys: tuple[str, ...]
    layers: tuple[LayerTensors, ...]
    settings: tuple[Mapping[str, Any], ...]
    fields: tuple[LayerField, ...]
    twins: tuple[Twin, ...] = ()
    implied: bool = False
    tail: tuple[LayerTensors, ...] = ()
    notes: tuple[str, ...] = ()
    donors: Mapping[str, Donor] = field(default_factory=dict)

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
    `runs` is all that is numbered, stacks and other towers.
    """

    checkpoint: Checkpoint
    family: Family
    stacks: Mapping[str, Stack]
    outside: Mapping[str, Tensor]
    role_rules: tuple[tuple[re.Pattern[str], str], ...]
    default_stack: str
    runs: tuple[LayerRun, ...] = field(compare=False)  # follows from the rest
    outputs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @cached_property
    def sliced(self) -> Mapping[str, OutsideSlices]:
        """Tensors outside the layers that hold one slice for each layer, by name."""
        return {
            name: rule for name in self.outside for rule in self.family.outside_slices if re.search(rule.pattern, name)
        }

    @cached_property
    def quantisation(self) -> Quantisation | None:
        """How the weights are quantised; None where nothing says that they are. Layers built alike are asked once."""
        inside = {
            layer.layout: (f"{stack.prefix}.{number}.", layer.layout.types)
            for stack in self.stacks.values()
            for number, layer in reversed(list(enumerate((*stack.layers, *stack.tail))))
        }
        outside = {name: tensor_type(one.dtype, one.shape) for name, one in self.outside.items()}
        return find_quantisation(self.checkpoint, [*reversed(inside.values()), ("", outside)])

    def packed_weights(self, layout: Layout) -> Mapping[str, PackedWeight]:
        """Return the quantised weights of a layer, by the names that they have where they are not quantised."""
        if layout not in self._packed:
            self._packed[layout] = packed_weights(layout.types)
        return self._packed[layout]

    @cached_property
    def _packed(self) -> dict[Layout, Mapping[str, PackedWeight]]:
        return {}

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
        """Return the role of a tensor from its name within its layer; a bias and a scale have their weight's role."""
        return self._roles.get(suffix) or self._role(suffix)

    def _role(self, suffix: str) -> str:
        alike = _EXPERT.sub(r"\1.0.", plain_name(suffix))
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
        # Some families silence a layer by tensors of no sublayer: then the others alone do not silence one.
        every = {role for own in SUBLAYERS.values() for role in own}
        mixed = [silence.role for silence in declared if silence.role not in every]
        mixed += [name for name, role in roles.items() if role in SUBLAYERS["mlp"] and _ATTENTION.search(name)]
        if mixed:
            raise ArchitectureError(
                "belongs to more than one sublayer", where=f"{mixed[0]!r}, model_type {self.model_type}",
                allowed="layers whose attention and MLP are apart", hint="prune the whole layer instead",
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
