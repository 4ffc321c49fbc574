"""A draft, spelled out: every output tensor once, where its bytes come from, and the new config. No weights.

This is the only place where positions become tensor names and per-layer settings become config fields again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from surgeon.core.checkpoint.checkpoint import Tensor
from surgeon.core.plan.draft import Draft, Layer, Lora, base_tensors
from surgeon.core.plan.expressions import Expression, MeanOf, TruncatedOf, first_leaf, is_pending, learned
from surgeon.core.plan.layer_slices import Slices, sliced
from surgeon.core.plan.learned_results import is_learned, layer_tensor, outside_tensor, result_tensors
from surgeon.core.plan.planned_layers import PlannedLayer, PlannedTensor, copied, planned_layer
from surgeon.core.plan.tied_head import outside_tensors, results_of, write_untied
from surgeon.core.structure.layer_fields import REMOVED, LayerField
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError

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

    outside: the tensors outside the layers.   layers: what the layers of each stack consist of.
    frozen: names of tensors that later training leaves as they are.
    """

    structure: Structure
    outside: tuple[PlannedTensor, ...]
    layers: Mapping[str, tuple[PlannedLayer, ...]]
    config: Mapping[str, Any]
    adapters: tuple[Adapter, ...]
    frozen: frozenset[str]
    inserted: tuple[str, ...]
    moved: bool

    @cached_property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """Every tensor once, in the order in which they are read; the first question costs some time."""
        order = {name: rank for rank, name in enumerate(self.structure.checkpoint.tensors)}
        found = [*self.outside]
        for name, layers in self.layers.items():
            stack = self.structure.stacks[name]
            for position, layer in enumerate(layers):
                found += layer.tensors(f"{stack.prefix}.{position}")
            for position, tensors in enumerate(stack.tail, start=len(layers)):
                found += (copied(stack.tensor_name(position, suffix), tensor) for suffix, tensor in tensors.items())
        found.sort(key=lambda one: (order.get(first_leaf(one.source, one.name), len(order)), one.name))
        return tuple(found)

    @property
    def layer_counts(self) -> dict[str, int]:
        """How many layers each stack has."""
        return {name: len(layers) for name, layers in self.layers.items()}

    @property
    def tensor_count(self) -> int:
        """How many tensors there are."""
        inside = sum(len(layer.models) for layers in self.layers.values() for layer in layers)
        return len(self.outside) + inside + sum(map(len, self._tails()))

    @property
    def parameters(self) -> int:
        """Stored elements of the checkpoint, adapters not counted."""
        return sum(part.parameters for part in self._parts())

    @property
    def trainable_parameters(self) -> int:
        """Stored elements that are not frozen."""
        frozen = (one.parameters for name, one in self._named() if name in self.frozen)
        return self.parameters - (sum(frozen) if self.frozen else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self._parts())

    @property
    def needs_arithmetic(self) -> bool:
        """Whether any tensor is calculated rather than copied or filled."""
        return any(
            isinstance(source, (MeanOf, TruncatedOf)) or (isinstance(source, Slices) and source.averaged)
            for source in self._sources()
        )

    @property
    def adapter_alone(self) -> bool:
        """Whether the base's weights are as they were, so that what is exported is an adapter and nothing else."""
        return bool(self.adapters) and not self.moved

    @property
    def pending(self) -> bool:
        """Whether a learned step has not been carried out yet: shapes are right, values are not there."""
        adapters = {one.lora.address for one in self.adapters if one.lora.address is not None}
        return any(map(is_pending, self._sources())) or not all(map(is_learned, adapters))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the tensors that are not frozen."""
        return tuple(tensor.name for tensor in self.tensors if tensor.name not in self.frozen)

    def _parts(self) -> Iterator[PlannedTensor | PlannedLayer | Tensor]:
        yield from self.outside
        for layers in self.layers.values():
            yield from layers
        for tensors in self._tails():
            yield from tensors.values()

    def _named(self) -> Iterator[tuple[str, PlannedTensor | Tensor]]:
        """Yield what is outside the layers and in them, under the names in the result."""
        yield from ((tensor.name, tensor) for tensor in self.outside)
        for name, layers in self.layers.items():
            stack = self.structure.stacks[name]
            for position, layer in enumerate(layers):
                yield from ((stack.tensor_name(position, suffix), model) for suffix, model in layer.models.items())

    def _tails(self) -> Iterator[Mapping[str, Tensor]]:
        for name in self.layers:
            yield from self.structure.stacks[name].tail

    def _sources(self) -> Iterator[Expression]:
        """Yield how each tensor is made that is no plain copy, and of others some."""
        yield from (tensor.source for tensor in self.outside)
        for layers in self.layers.values():
            for layer in layers:
                yield from layer.made.values()


def compile_plan(draft: Draft) -> Plan:
    """Turn a draft into a plan.

    Raises:
        ArchitectureError: the result cannot be expressed; the message names the config field or the tensor.
    """
    structure = draft.structure
    config = compile_config(draft)
    outside = tuple(_outside(draft))
    planned = {
        name: tuple(planned_layer(structure, structure.stacks[name], layers, at) for at in range(len(layers)))
        for name, layers in draft.stacks.items()
    }
    return Plan(
        structure=structure,
        outside=outside,
        layers=planned,
        config=config,
        adapters=tuple(_adapters(draft, planned)),
        frozen=frozenset(_frozen(draft, planned)),
        inserted=tuple(
            f"{structure.stacks[name].prefix}.{position}"
            for name, layers in draft.stacks.items()
            for position, layer in enumerate(layers)
            if layer.inserted
        ),
        moved=draft.moved,
    )


def compile_config(draft: Draft) -> dict[str, Any]:
    """Return the new config: the layer counts and every per-layer field rewritten, everything else as it was.

    Raises:
        ArchitectureError: a field cannot say what the layers have become.
    """
    config: dict[str, Any] = copy.deepcopy(dict(draft.structure.checkpoint.config))
    for name, layers in draft.stacks.items():
        stack = draft.structure.stacks[name]
        settings = [layer.settings for layer in layers]
        if settings == list(stack.settings):
            continue
        part = config
        for key in stack.config_path:
            part = part[key]
        part.update((key, len(layers)) for key in stack.count_keys)
        _write_fields(part, stack.fields, settings, draft.structure.stack_config(stack))
        _write_fields(config, stack.root_fields, settings, draft.structure.checkpoint.config)
    write_untied(config, draft)
    return config


def _write_fields(
    part: dict[str, Any], fields: Iterable[LayerField], settings: list[Mapping[str, Any]], before: Mapping[str, Any]
) -> None:
    for field in fields:
        for key, value in field.write([setting[field.key] for setting in settings], before).items():
            if value is REMOVED:
                part.pop(key, None)
            else:
                part[key] = value


def _outside(draft: Draft) -> Iterator[PlannedTensor]:
    cut = dict(sliced(draft))
    for name, tensor in outside_tensors(draft).items():
        if name in draft.structure.sliced:
            _refuse_trained(draft, name)
            yield _cut(cut[name]) if name in cut else copied(name, tensor)
            continue
        planned = copied(name, tensor)
        for address, then in results_of(draft, name):
            planned = replace(planned, source=learned(planned.source, address, outside_tensor(then)))
        yield planned


def _refuse_trained(draft: Draft, name: str) -> None:
    """Refuse a trained tensor of slices: it is not told which layers the slices were of when it was trained."""
    if any(is_learned(address) and outside_tensor(name) in result_tensors(address) for address in draft.learned):
        raise ArchitectureError(
            "holds one slice for each layer, and was trained",
            where=f"tensor {name!r}",
            allowed="training that leaves it as it is",
            hint="freeze the embedding before",
        )


def _cut(slices: Slices) -> PlannedTensor:
    whole, axis = slices.tensor, slices.axis
    parameters = whole.parameters // whole.shape[axis] * slices.shape[axis]
    nbytes = whole.nbytes // whole.parameters * parameters
    return PlannedTensor(whole.name, whole.dtype, slices.shape, slices, nbytes, parameters)


Planned = Mapping[str, tuple[PlannedLayer, ...]]


def _adapters(draft: Draft, planned: Planned) -> Iterator[Adapter]:
    for stack, position, layer, one in _placed(draft, planned):
        if not layer.lora:
            continue
        for suffix, tensor in one.models.items():
            role = draft.structure.role(suffix)
            if role in layer.lora and _is_matrix(suffix, tensor.shape):
                (live,) = draft.structure.memory_names([stack.tensor_name(position, suffix)])
                own = layer_tensor(stack.name, layer.key, suffix.removesuffix(".weight"))
                yield Adapter(live.removesuffix(".weight"), own, role, position, tensor.shape, layer.lora[role])


def _frozen(draft: Draft, planned: Planned) -> Iterator[str]:
    for stack, position, layer, one in _placed(draft, planned):
        if layer.frozen:
            frozen = (suffix for suffix in one.models if draft.structure.role(suffix) in layer.frozen)
            yield from (stack.tensor_name(position, suffix) for suffix in frozen)
    yield from (name for name in outside_tensors(draft) if outside_kind(name) in draft.frozen)


def _placed(draft: Draft, planned: Planned) -> Iterator[tuple[Stack, int, Layer, PlannedLayer]]:
    """Yield every layer of a draft with its stack, its position and what it consists of."""
    for name, layers in draft.stacks.items():
        for position, (layer, one) in enumerate(zip(layers, planned[name], strict=True)):
            yield draft.structure.stacks[name], position, layer, one


_HEADS = ("head.weight", "decoder.weight")
_HEAD_ENDS = (
    "output.weight", "output_projection.weight", "proj_out.weight", "predictions.decoder.weight", "lm_loss.weight",
    "pred_layer.proj.weight",
)  # fmt: skip
_CTRL_EMBEDDING = "transformer.w.weight"


def outside_kind(name: str) -> str:
    """Return which of `draft.OUTSIDE` a tensor outside the layers is."""
    lowered = name.lower()
    if "lm_head" in lowered or "embed_out" in lowered or lowered in _HEADS or lowered.endswith(_HEAD_ENDS):
        return "head"
    if any(part in lowered for part in ("embed", "wte", "wpe")) or lowered == _CTRL_EMBEDDING:
        return "embedding"
    return "norm"


def has_own_head(draft: Draft) -> bool:
    """Whether the output head has weights of its own, and is not the embedding once more."""
    return "head" in map(outside_kind, outside_tensors(draft))


def layer_roles(draft: Draft, layer: Layer, stack: str | None = None) -> frozenset[str]:
    """Return the roles of a layer's tensors."""
    structure = draft.structure
    return frozenset(structure.roles_of(base_tensors(layer.source, structure.stack(stack)).layout).values())


def adaptable_roles(draft: Draft, layer: Layer, stack: str | None = None) -> frozenset[str]:
    """Return the roles of a layer's matrices, which adapters fit: not of norms, biases and convolutions."""
    structure = draft.structure
    layout = base_tensors(layer.source, structure.stack(stack)).layout
    roles = structure.roles_of(layout)
    return frozenset(roles[suffix] for suffix, one in layout.types.items() if _is_matrix(suffix, one.shape))


def _is_matrix(suffix: str, shape: tuple[int, ...]) -> bool:
    return suffix.endswith(".weight") and len(shape) == 2
