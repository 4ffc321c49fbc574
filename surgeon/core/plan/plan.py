"""A draft, spelled out: every output tensor once, where its bytes come from, and the new config. No weights.

This is the only place where positions become tensor names and per-layer settings become config fields again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from surgeon.core.checkpoint.checkpoint import Tensor
from surgeon.core.plan.draft import Draft, Layer, Lora, base_tensors
from surgeon.core.plan.end_tensors import tensors_at
from surgeon.core.plan.expressions import (
    Copy,
    Expression,
    MeanOf,
    TruncatedOf,
    express,
    first_leaf,
    is_pending,
    learned,
)
from surgeon.core.plan.layer_slices import Slices, sliced
from surgeon.core.plan.learned_results import is_learned, layer_tensor, outside_tensor, result_tensors
from surgeon.core.plan.tied_head import outside_tensors, results_of, write_untied
from surgeon.core.structure.layer_fields import REMOVED, LayerField
from surgeon.core.structure.structure import Structure
from surgeon.errors import ArchitectureError


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the result."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Expression
    nbytes: int
    parameters: int


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
    """Everything an executor needs. `frozen` are names of tensors that later training leaves as they are."""

    structure: Structure
    tensors: tuple[PlannedTensor, ...]
    config: Mapping[str, Any]
    adapters: tuple[Adapter, ...]
    frozen: frozenset[str]
    inserted: tuple[str, ...]
    moved: bool
    layer_counts: Mapping[str, int]

    @property
    def parameters(self) -> int:
        """Stored elements of the checkpoint, adapters not counted."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def needs_arithmetic(self) -> bool:
        """Whether any tensor is calculated rather than copied or filled."""
        return any(
            isinstance(source, (MeanOf, TruncatedOf)) or (isinstance(source, Slices) and source.averaged)
            for source in (tensor.source for tensor in self.tensors)
        )

    @property
    def adapter_alone(self) -> bool:
        """Whether the base's weights are as they were, so that what is exported is an adapter and nothing else."""
        return bool(self.adapters) and not self.moved

    @property
    def pending(self) -> bool:
        """Whether a learned step has not been carried out yet: shapes are right, values are not there."""
        adapters = {one.lora.address for one in self.adapters if one.lora.address is not None}
        return any(is_pending(tensor.source) for tensor in self.tensors) or not all(map(is_learned, adapters))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the tensors that are not frozen."""
        return tuple(tensor.name for tensor in self.tensors if tensor.name not in self.frozen)


def compile_plan(draft: Draft) -> Plan:
    """Turn a draft into a plan.

    Raises:
        ArchitectureError: the result cannot be expressed; the message names the config field or the tensor.
    """
    structure = draft.structure
    config = compile_config(draft)
    tensors = [*_outside(draft), *_inside(draft)]
    order = {tensor.name: rank for rank, tensor in enumerate(structure.checkpoint.tensors.values())}
    tensors.sort(key=lambda tensor: (order.get(first_leaf(tensor.source, tensor.name), len(order)), tensor.name))
    return Plan(
        structure=structure,
        tensors=tuple(tensors),
        config=config,
        adapters=tuple(_adapters(draft)),
        frozen=frozenset(_frozen(draft)),
        inserted=tuple(
            f"{structure.stacks[name].prefix}.{position}"
            for name, layers in draft.stacks.items()
            for position, layer in enumerate(layers)
            if layer.inserted
        ),
        moved=draft.moved,
        layer_counts={name: len(layers) for name, layers in draft.stacks.items()},
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
            yield _cut(cut[name]) if name in cut else _copied(name, tensor)
            continue
        planned = _copied(name, tensor)
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


def _copied(name: str, tensor: Tensor) -> PlannedTensor:
    return PlannedTensor(name, tensor.dtype, tensor.shape, Copy(tensor), tensor.nbytes, tensor.parameters)


def _inside(draft: Draft) -> Iterator[PlannedTensor]:
    for name, layers in draft.stacks.items():
        stack = draft.structure.stacks[name]
        for position, layer in enumerate(layers):
            for suffix, (model, made) in tensors_at(stack, layers, position).items():
                expression = made or express(draft.structure, stack, layer.source, suffix)
                yield PlannedTensor(
                    stack.tensor_name(position, suffix),
                    model.dtype,
                    model.shape,
                    expression,
                    model.nbytes,
                    model.parameters,
                )
        for position, behind in enumerate(stack.tail, start=len(layers)):
            for suffix, tensor in behind.items():
                yield _copied(stack.tensor_name(position, suffix), tensor)


def _adapters(draft: Draft) -> Iterator[Adapter]:
    for name, layers in draft.stacks.items():
        stack = draft.structure.stacks[name]
        for position, layer in enumerate(layers):
            for suffix, (tensor, _) in tensors_at(stack, layers, position).items():
                role = draft.structure.role(suffix)
                if role in layer.lora and _is_matrix(suffix, tensor):
                    (live,) = draft.structure.memory_names([stack.tensor_name(position, suffix)])
                    own = layer_tensor(name, layer.key, suffix.removesuffix(".weight"))
                    yield Adapter(live.removesuffix(".weight"), own, role, position, tensor.shape, layer.lora[role])


def _frozen(draft: Draft) -> Iterator[str]:
    structure = draft.structure
    for name, layers in draft.stacks.items():
        stack = structure.stacks[name]
        for position, layer in enumerate(layers):
            for suffix in tensors_at(stack, layers, position):
                if structure.role(suffix) in layer.frozen:
                    yield stack.tensor_name(position, suffix)
    for name in outside_tensors(draft):
        if outside_kind(name) in draft.frozen:
            yield name


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
    return frozenset(map(draft.structure.role, base_tensors(layer.source, draft.structure.stack(stack))))


def adaptable_roles(draft: Draft, layer: Layer, stack: str | None = None) -> frozenset[str]:
    """Return the roles of a layer's matrices, which adapters fit: not of norms, biases and convolutions."""
    tensors = base_tensors(layer.source, draft.structure.stack(stack))
    return frozenset(draft.structure.role(suffix) for suffix, one in tensors.items() if _is_matrix(suffix, one))


def _is_matrix(suffix: str, tensor: Tensor) -> bool:
    return suffix.endswith(".weight") and len(tensor.shape) == 2
