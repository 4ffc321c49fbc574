"""Layers that were cut, in memory: tensors cut as loaded, in the module that transformers makes of the new config."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import nn

from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.tensors import kept_spans
from surgeon.core.checkpoint.tensors import tensor_type
from surgeon.core.parts.divide import divide
from surgeon.core.plan.draft import Part
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
    state = layer.state_dict(keep_vars=True)
    # Parts are told apart by names and shapes; of which dtype they are loaded does not matter.
    layout = Layout({name: tensor_type("F32", tuple(tensor.shape)) for name, tensor in state.items()})
    division = divide(structure, structure.stack_config(stack), layout, part.kind)
    if division is None or division.owners:
        raise ArchitectureError(
            f"the loaded layers hold their {part.kind} in another form than the checkpoint",
            where=f"model_type {structure.model_type}",
            allowed="models whose experts are stacked once they are loaded",
            hint="this model can be edited on disk, not measured or verified",
        )
    for name, cut in division.cuts.items():
        kept = kept_spans(state[name].detach(), cut.axis, cut.runs(division.count, part.kept)).clone()
        _put(layer, name, nn.Parameter(kept, state[name].requires_grad) if _is_parameter(layer, name) else kept)


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
