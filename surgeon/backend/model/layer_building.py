"""Builds the module of a layer from where its weights come from: shared with the base where it is the base's own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.loading import donor_model
from surgeon.backend.model.matrices import truncate
from surgeon.backend.model.streaming import weights_of, without_hooks
from surgeon.backend.model.tensors import DTYPES, kept_spans, mean_of, tensor_reader
from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.checkpoint.tensors import tensor_type
from surgeon.core.parts.divide import divide
from surgeon.core.parts.division import Division, PartKind
from surgeon.core.plan.draft import Grafted, Identity, Learned, Original, Part, Silenced, Source, Truncated
from surgeon.core.plan.expressions import silent_values, truncated_pieces
from surgeon.core.plan.layer_layouts import layout_of, parts_in
from surgeon.core.plan.learned_results import layer_tensor, result_tensors
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError


class LayerShells:
    """Layers as transformers builds them from an edited config, without weights; built once any is asked for."""

    def __init__(self, model: nn.Module, config: Any, stack: Stack, count: int) -> None:
        """Know what to build: `config` is the edited one of the model, `count` the layers that it gives the stack."""
        self._model, self._config, self._stack, self._count = model, config, stack, count

    def at(self, position: int) -> nn.Module:
        """Return the layer at a position."""
        return self._layers[position]

    @cached_property
    def _layers(self) -> nn.ModuleList:
        cls: Any = type(self._model)
        try:
            with torch.device("meta"):
                built: Any = cls._from_config(self._config)
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ArchitectureError(
                f"transformers cannot build the model that was cut: {first}", where="config.json"
            ) from error
        _share_config(built, self._config)
        return layer_list(built.eval(), self._stack, self._count)


def _share_config(model: nn.Module, config: Any) -> None:
    """Give every module the config itself, of which transformers hands out copies."""
    own: Any = model.config
    pairs = {id(own): config}
    pairs |= {id(part): vars(config)[name] for name, part in vars(own).items() if hasattr(part, "to_dict")}
    for module in model.modules():
        copied = vars(module).get("config")
        if id(copied) in pairs:
            module.config = pairs[id(copied)]


@torch.no_grad()
def cut_tensors(structure: Structure, stack: Stack, layer: nn.Module, part: Part) -> None:
    """Keep some parts of a loaded layer's tensors; nothing else about it changes, so it cannot be called any more.

    Raises:
        ArchitectureError: they do not divide as those of the checkpoint do.
    """
    division = loaded_division(structure, stack, layer, part.kind)
    if division is None:
        raise _otherwise_held(structure, part.kind)
    state = layer.state_dict(keep_vars=True)
    for name, cut in division.cuts.items():
        kept = kept_spans(state[name].detach(), cut.axis, cut.runs(division.count, part.kept)).clone()
        _put(layer, name, nn.Parameter(kept, state[name].requires_grad) if _is_parameter(layer, name) else kept)


def loaded_division(structure: Structure, stack: Stack, layer: nn.Module, kind: PartKind) -> Division | None:
    """Return a loaded layer as parts of a kind; None if it has none.

    Raises:
        ArchitectureError: it cannot be divided, or its experts are modules of their own.
    """
    # Parts are told apart by names and shapes; of which dtype they are loaded does not matter.
    types = {name: tensor_type("F32", tuple(tensor.shape)) for name, tensor in layer.state_dict().items()}
    division = divide(structure, structure.stack_config(stack), Layout(types), kind)
    if division is not None and division.owners:
        raise _otherwise_held(structure, kind)
    return division


def _otherwise_held(structure: Structure, kind: PartKind) -> ArchitectureError:
    return ArchitectureError(
        f"the loaded layers hold their {kind} in another form than the checkpoint",
        where=f"model_type {structure.model_type}",
        allowed="models whose experts are stacked once they are loaded",
        hint="this model can be edited on disk, not measured or verified",
    )


def moved_into(shell: nn.Module, holder: nn.Module) -> nn.Module:
    """Give a layer without weights the tensors of another, and return it.

    Raises:
        ArchitectureError: it needs others, or of other shapes.
    """
    own = _tensors(holder)
    for name, tensor in _tensors(shell).items():
        found = own.pop(name, None)
        if found is None or found.shape != tensor.shape:
            has = "no such tensor" if found is None else str(list(found.shape))
            raise ArchitectureError(
                f"would be {list(tensor.shape)} by the edited config, and what was cut has {has}",
                where=f"tensor {name!r} of a layer",
                allowed="cuts that the config can say",
                hint="this part of the layer cannot be cut in models of this type",
            )
        _put(shell, name, found)
    if own:
        raise ArchitectureError(
            "a layer of the edited config has no such tensor", where=f"tensor {next(iter(own))!r} of a layer"
        )
    return shell


def _tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(layer.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(layer.named_buffers(remove_duplicate=False))}


def _is_parameter(layer: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    return attribute in layer.get_submodule(path)._parameters


def _put(layer: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    module = layer.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        module._parameters[attribute] = tensor
    else:
        module._buffers[attribute] = tensor


def assemble(
    structure: Structure, stack: Stack, sources: Sequence[Source], base: Sequence[nn.Module], shells: LayerShells
) -> list[nn.Module]:
    """Return the layers of a stack; those of the base are used once as they are, all others are built.

    Raises:
        ArchitectureError: the loaded layers cannot be cut, or do not fit what transformers makes of the new config.
    """
    builder, used, edited = _Builder(structure, stack, base), set[int](), list[nn.Module]()
    for position, source in enumerate(sources):
        whole = _cut_of(source)
        shared = whole is not None and whole not in used
        if shared and whole is not None:
            used.add(whole)
        if shared and isinstance(source, Original):
            edited.append(base[source.index])
            continue
        module = builder.build(source, shared=shared)
        edited.append(moved_into(shells.at(position), module) if parts_in(source) else module)
    return edited


def _cut_of(source: Source) -> int | None:
    """Return the layer of the base that a source is, or parts of which it is and nothing else."""
    while isinstance(source, Part):
        source = source.of
    return source.index if isinstance(source, Original) else None


class _Builder:
    """Builds layers of a stack, each as a module that nothing else uses."""

    def __init__(self, structure: Structure, stack: Stack, base: Sequence[nn.Module]) -> None:
        self._structure, self._stack, self._base = structure, stack, base

    def build(self, source: Source, *, shared: bool = False) -> nn.Module:
        """Return a layer from `source`; with `shared` the weights that are not cut are the base's own.

        A layer that was cut only holds its tensors: what else it is follows from the config.
        """
        if isinstance(source, Original | Grafted):
            if isinstance(source, Original):
                module = _copied(self._base[source.index], shared=shared)
            else:
                module = self._grafted(source)
            return module
        if isinstance(source, Part):
            module = self.build(source.of, shared=shared)
            cut_tensors(self._structure, self._stack, module, source)
            return module
        if isinstance(source, Identity | Silenced):
            module = self.build(source.of)
            self._silence(module, source)
            return module
        if isinstance(source, Truncated):
            module = self.build(source.of)
            self._truncate(module, source)
            return module
        if isinstance(source, Learned):
            module = self.build(source.of)
            _restore_learned(self._structure, module, source, self._stack)
            return module
        module, *others = (self.build(part) for part in source.parts)
        self._average(module, others, source)
        return module

    def _grafted(self, source: Grafted) -> nn.Module:
        """Return a copy of a base layer that is built and configured alike, with the weights of another model's."""
        donor = self._stack.donors[source.donor]
        module = _copied(self._base[donor.twins[source.index]], shared=False)
        layers = layer_list(donor_model(donor.checkpoint), self._stack, len(donor.layers))
        module.load_state_dict(layers[source.index].state_dict())
        return module

    @torch.no_grad()
    def _silence(self, module: nn.Module, source: Identity | Silenced) -> None:
        values = silent_values(self._structure, self._stack, source)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            role = self._structure.role(name)
            if role in values:
                tensor.fill_(values[role])

    @torch.no_grad()
    def _truncate(self, module: nn.Module, source: Truncated) -> None:
        stored = _stored_dtypes(self._structure, self._stack, source)
        for name, parameter in module.named_parameters():
            pieces = truncated_pieces(self._structure, self._stack, source, name, tuple(parameter.shape))
            if pieces:
                weight = parameter.to(stored.get(name, parameter.dtype), copy=True)
                truncate(weight, pieces, source.how)
                parameter.copy_(weight)

    @torch.no_grad()
    def _average(self, module: nn.Module, others: Sequence[nn.Module], source: Source) -> None:
        weights = [other.state_dict() for other in others]
        stored = _stored_dtypes(self._structure, self._stack, source)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                parts = (value, *(other[name] for other in weights))
                value.copy_(mean_of([part.to(stored.get(name, part.dtype)) for part in parts]))


def _copied(layer: nn.Module, *, shared: bool) -> nn.Module:
    """Return a copy of a layer with the weights that it has now, or with the same ones."""
    with weights_of(layer):
        own = (*layer.parameters(), *layer.buffers()) if shared else ()
        return without_hooks(copy.deepcopy(layer, {id(tensor): tensor for tensor in own}))


def _stored_dtypes(structure: Structure, stack: Stack, source: Source) -> dict[str, torch.dtype]:
    """Return by live name what a layer's tensors are stored in: an export rounds to it, and so do we.

    Otherwise a model that is computed in float32 would be measured with other weights than are written.
    """
    known = not structure.family.renamed
    return {
        _live_suffix(structure, stack, suffix) if known else suffix: DTYPES[tensor.dtype]
        for suffix, tensor in layout_of(structure, stack, source).types.items()
        if tensor.dtype in FLOATS
    }


def _restore_learned(structure: Structure, module: nn.Module, source: Learned, stack: Stack) -> None:
    """Give a layer the tensors that a learned step left it with."""
    stored = result_tensors(source.address)
    live = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with tensor_reader() as reader, torch.no_grad():
        for suffix in layout_of(structure, stack, source).types:
            found = stored.get(layer_tensor(stack.name, source.key, suffix))
            if found is not None:
                live[_live_suffix(structure, stack, suffix)].copy_(reader.read(found))


def _live_suffix(structure: Structure, stack: Stack, suffix: str) -> str:
    """Return what a tensor of a layer is called within the loaded layer."""
    (live,) = structure.memory_names([stack.tensor_name(0, suffix)])
    return live.partition(".0.")[2]
