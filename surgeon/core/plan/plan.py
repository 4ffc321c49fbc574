"""A draft, spelled out: every output tensor once, where its bytes come from, and the new config. No weights.

This is the only place where positions become tensor names and per-layer settings become config fields again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from surgeon.core.checkpoint.weight_files import NAMED_IN_CONFIG
from surgeon.core.plan.draft import Draft, Layer, Lora
from surgeon.core.plan.expressions import Expression, first_leaf, is_pending
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.plan.layer_moves import with_names
from surgeon.core.plan.learned_results import is_learned, layer_tensor
from surgeon.core.plan.part_counts import write_counts
from surgeon.core.plan.planned_files import PlannedFiles, planned_files
from surgeon.core.plan.planned_layers import PlannedLayer, PlannedTensor, planned_layer
from surgeon.core.plan.planned_outside import planned_outside
from surgeon.core.plan.stored_parts import needs_arithmetic
from surgeon.core.plan.tied_head import outside_tensors, write_untied
from surgeon.core.structure.layer_fields import REMOVED, LayerField
from surgeon.core.structure.outside import outside_kind
from surgeon.core.structure.structure import Stack, Structure, Twin

__all__ = [
    "Adapter", "Plan", "PlannedLayer", "PlannedTensor", "adaptable_roles", "compile_config", "compile_plan",
    "has_own_head", "layer_roles", "outside_kind",
]  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """One LoRA matrix of the result.

    module: the target's name in the loaded model.   name: its own, whatever the layer's position.
    shape: the base weight's.
    """

    module: str
    name: str
    role: str
    layer: int
    shape: tuple[int, ...]
    lora: Lora


@dataclass(frozen=True)
class Plan:
    """Everything an executor needs.

    outside: the tensors outside the layers.
    layers: what each layer consists of, by what the names of its tensors begin with, such as `model.layers.7`; what is
        stored behind the last layer under the numbers that follow is there too.
    frozen: names of tensors that later training leaves as they are.
    files: what becomes of the files beside the weights.
    """

    structure: Structure
    outside: tuple[PlannedTensor, ...]
    layers: Mapping[str, PlannedLayer]
    config: Mapping[str, Any]
    adapters: tuple[Adapter, ...]
    frozen: frozenset[str]
    inserted: tuple[str, ...]
    moved: bool
    layer_counts: Mapping[str, int]
    files: PlannedFiles

    @cached_property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """Every tensor once, in the order in which they are read; who wants only sums need not ask for them."""
        order = {name: rank for rank, name in enumerate(self.structure.checkpoint.tensors)}
        inside = (tensor for prefix, layer in self.layers.items() for tensor in layer.tensors(prefix))
        in_order = sorted(
            (*self.outside, *inside),
            key=lambda one: (order.get(first_leaf(one.source, one.name), len(order)), one.name),
        )
        return tuple(in_order)

    @property
    def tensor_count(self) -> int:
        """How many tensors there are."""
        return len(self.outside) + sum(len(layer.layout.types) for layer in self.layers.values())

    @property
    def parameters(self) -> int:
        """Stored elements of the checkpoint, adapters not counted."""
        return sum(part.parameters for part in self._parts())

    @property
    def trainable_parameters(self) -> int:
        """Stored elements that are not frozen."""
        return self.parameters - sum(self._frozen_parameters() if self.frozen else ())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self._parts())

    @property
    def needs_arithmetic(self) -> bool:
        """Whether any tensor is calculated rather than copied, whole or in pieces, or filled."""
        return any(map(needs_arithmetic, self._made()))

    @property
    def adapter_alone(self) -> bool:
        """Whether the base's weights are as they were, so that what is exported is an adapter and nothing else."""
        return bool(self.adapters) and not self.moved

    @property
    def pending(self) -> bool:
        """Whether a learned step has not been carried out yet: shapes are right, values are not there."""
        adapters = {one.lora.address for one in self.adapters if one.lora.address is not None}
        return any(map(is_pending, self._made())) or not all(map(is_learned, adapters))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the tensors that are not frozen."""
        return tuple(tensor.name for tensor in self.tensors if tensor.name not in self.frozen)

    def _parts(self) -> Iterator[PlannedTensor | PlannedLayer]:
        yield from self.outside
        yield from self.layers.values()

    def _made(self) -> Iterator[Expression]:
        """Yield how tensors are made, those apart that are copies of a whole layer's."""
        yield from (tensor.source for tensor in self.outside)
        for layer in self.layers.values():
            yield from layer.made.values()

    def _frozen_parameters(self) -> Iterator[int]:
        yield from (tensor.parameters for tensor in self.outside if tensor.name in self.frozen)
        for prefix, layer in self.layers.items():
            types = layer.layout.types.items()
            yield from (one.parameters for suffix, one in types if f"{prefix}.{suffix}" in self.frozen)


def compile_plan(draft: Draft) -> Plan:
    """Turn a draft into a plan.

    Raises:
        ArchitectureError: the result cannot be expressed; the message names the config field or the tensor.
    """
    structure = draft.structure
    config = compile_config(draft)
    outside = tuple(planned_outside(draft))
    layers = dict(_planned_layers(draft))
    return Plan(
        structure=structure,
        outside=outside,
        layers=layers,
        config=config,
        adapters=tuple(_adapters(draft, layers)),
        frozen=frozenset(_frozen(draft, layers)),
        inserted=tuple(prefix for _, _, prefix, layer in _placed(draft) if layer.inserted),
        moved=draft.moved,
        layer_counts={name: len(layers) for name, layers in draft.stacks.items()},
        files=planned_files(draft),
    )


def compile_config(draft: Draft) -> dict[str, Any]:
    """Return the new config: layer counts, per-layer fields and names of layers rewritten, everything else as it was.

    Raises:
        ArchitectureError: a field cannot say what the layers have become.
    """
    structure = draft.structure
    config: dict[str, Any] = copy.deepcopy(dict(structure.checkpoint.config))
    # It names a file of the base: what is written goes by the names that transformers looks for.
    config.pop(NAMED_IN_CONFIG, None)
    edited = {
        name for name, layers in draft.stacks.items() if _settings(layers) != list(structure.stacks[name].settings)
    }
    for name, layers in draft.stacks.items():
        stack = structure.stacks[name]
        write_counts(_part(config, stack.config_path), draft, stack)
        for twin in stack.twins:
            write_counts(_part(config, twin.path), draft, stack, repeated=True)
        if name not in edited:
            # Where its count is another's, that has changed.
            _part(config, stack.config_path).update(
                (key, len(layers)) for key in stack.count_keys if stack.implied and edited
            )
            continue
        part, settings = _part(config, stack.config_path), _settings(layers)
        part.update((key, len(layers)) for key in stack.count_keys)
        _write_fields(part, stack.fields, settings, structure.stack_config(stack))
        for twin in stack.twins:
            _write_twin(_part(config, twin.path), twin, settings, len(layers))
    write_untied(config, draft)
    return with_names(config, draft)


def _settings(layers: Iterable[Layer]) -> list[Mapping[str, Any]]:
    return [layer.settings for layer in layers]


def _part(config: dict[str, Any], path: Iterable[str]) -> dict[str, Any]:
    for key in path:
        config = config[key]
    return config


def _write_fields(
    part: dict[str, Any], fields: Iterable[LayerField], settings: list[Mapping[str, Any]], before: Mapping[str, Any]
) -> None:
    for field in fields:
        _write(part, field.write([setting[field.key] for setting in settings], before))


def _write_twin(part: dict[str, Any], twin: Twin, settings: list[Mapping[str, Any]], count: int) -> None:
    """Say in another part of the config what it said before of each layer; nothing that it left to others."""
    before = copy.deepcopy(part)
    part.update(dict.fromkeys(twin.count_keys, count))
    for field in twin.fields:
        said = field.write([setting[twin.setting(field)][0] for setting in settings], before)
        _write(part, {key: value for key, value in said.items() if key in before})


def _write(part: dict[str, Any], said: Mapping[str, Any]) -> None:
    for key, value in said.items():
        if value is REMOVED:
            part.pop(key, None)
        else:
            part[key] = value


def _placed(draft: Draft) -> Iterator[tuple[Stack, int, str, Layer]]:
    """Yield every layer with its stack, its position, and what the names of its tensors begin with."""
    for name, layers in draft.stacks.items():
        stack = draft.structure.stacks[name]
        yield from ((stack, position, f"{stack.prefix}.{position}", layer) for position, layer in enumerate(layers))


def _planned_layers(draft: Draft) -> Iterator[tuple[str, PlannedLayer]]:
    for stack, position, prefix, _ in _placed(draft):
        yield prefix, planned_layer(draft.structure, stack, draft.stacks[stack.name], position)
    for name, layers in draft.stacks.items():
        stack = draft.structure.stacks[name]
        for position, behind in enumerate(stack.tail, start=len(layers)):
            yield f"{stack.prefix}.{position}", PlannedLayer(behind.layout, behind, {})


def _adapters(draft: Draft, planned: Mapping[str, PlannedLayer]) -> Iterator[Adapter]:
    for stack, position, prefix, layer in _placed(draft):
        for suffix, one in planned[prefix].layout.types.items() if layer.lora else ():
            role = draft.structure.role(suffix)
            if role in layer.lora and _is_matrix(suffix, one.shape):
                (live,) = draft.structure.memory_names([f"{prefix}.{suffix}"])
                own = layer_tensor(stack.name, layer.key, suffix.removesuffix(".weight"))
                yield Adapter(live.removesuffix(".weight"), own, role, position, one.shape, layer.lora[role])


def _frozen(draft: Draft, planned: Mapping[str, PlannedLayer]) -> Iterator[str]:
    for _, _, prefix, layer in _placed(draft):
        for suffix in planned[prefix].layout.types if layer.frozen else ():
            if draft.structure.role(suffix) in layer.frozen:
                yield f"{prefix}.{suffix}"
    yield from (name for name in outside_tensors(draft) if outside_kind(name) in draft.frozen)


def has_own_head(draft: Draft) -> bool:
    """Whether the output head has weights of its own, and is not the embedding once more."""
    return "head" in map(outside_kind, outside_tensors(draft))


def layer_roles(draft: Draft, layer: Layer, stack: str | None = None) -> frozenset[str]:
    """Return the roles of a layer's tensors."""
    structure = draft.structure
    return frozenset(structure.roles_of(layout_of(structure, structure.stack(stack), layer.source)).values())


def adaptable_roles(draft: Draft, layer: Layer, stack: str | None = None) -> frozenset[str]:
    """Return the roles of a layer's matrices, which adapters fit: not of norms, biases and convolutions."""
    structure = draft.structure
    layout = layout_of(structure, structure.stack(stack), layer.source)
    roles = structure.roles_of(layout)
    return frozenset(roles[suffix] for suffix, one in layout.types.items() if _is_matrix(suffix, one.shape))


def _is_matrix(suffix: str, shape: tuple[int, ...]) -> bool:
    return suffix.endswith(".weight") and len(shape) == 2
