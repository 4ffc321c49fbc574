"""Models made of the same weights: what is frozen is held once, what is trained gets a float32 master of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from surgeon.backend.frozen.frozen_weight import FrozenWeight

Reading = Callable[[], torch.Tensor]
"""Gives a stored tensor, in its own dtype, on the device that it is wanted on."""
_MATRIX = 2


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a model of its own modules over the same tensors: rearranging or wrapping one leaves the other alone.

    Parameters are objects of their own, so that either may be given others; what is written into a tensor both see.
    """
    memo: dict[int, object] = {id(one): _sharing(one) for one in model.parameters()}
    states = (getattr(module, "quant_state", None) for module in model.modules())
    memo.update((id(one), one) for one in states if one is not None)
    memo.update((id(one), one) for one in model.buffers())
    made: nn.Module = copy.deepcopy(model, memo)
    return made


def _sharing(one: Any) -> object:
    """Return a parameter over the same tensor."""
    if type(one) is nn.Parameter:
        return nn.Parameter(one.detach(), requires_grad=False)
    if hasattr(one, "SCB"):  # int8 of bitsandbytes: the layer that runs first takes the codes away from its parameter
        return type(one)(one.data, requires_grad=False, has_fp16_weights=False, CB=one.CB, SCB=one.SCB)
    return one


def give_masters(model: nn.Module, names: Iterable[str], *, shared: bool) -> dict[str, nn.Parameter]:
    """Return, by name, trainable parameters in float32; they take the places of those that are there.

    `shared`: another model is made of the same tensors, so that even one that is float32 already is copied.
    """
    live = dict(model.named_parameters())
    wanted = {name: live[name] for name in names}
    masters = {id(one): nn.Parameter(one.detach().to(torch.float32, copy=shared)) for one in wanted.values()}
    _replace(model, masters)
    return {name: masters[id(one)] for name, one in wanted.items()}


def hold_frozen(
    models: Sequence[nn.Module], computed_in: torch.dtype, readings: Mapping[str, Reading] | None = None
) -> None:
    """Hold every weight that wants no gradient once for all models, as it is stored; it counts as float32.

    Only where products are taken in the narrower `computed_in`, the matrix of a linear layer is rounded to that once,
    as autocast would do anew at each step. Vectors and buffers, which take next to nothing, become float32.

    readings: of the last model, by name, what is let go and read anew whenever it is used.
    """
    held: dict[_Place, nn.Parameter] = {}
    multiplied = _only_multiplied(models)
    for model in models:
        new = {}
        for name, one in model.named_parameters():
            if one.requires_grad or not one.is_floating_point() or one.dtype.itemsize > torch.float32.itemsize:
                continue
            if model is models[-1] and name in (readings or {}):
                like = torch.empty(one.shape, device="meta")
                new[id(one)] = _frozen(FrozenWeight(like, (readings or {})[name], one.device))
                continue
            place = _place(one)
            if place not in held:
                held[place] = _frozen(_held(one.detach(), computed_in, multiplied=place in multiplied))
            new[id(one)] = held[place]
        _replace(model, new)
        _widen_buffers(model)


def own_weights(model: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of a model's parameters that are held for it alone, and not for the other as well."""
    theirs = {_place(one) for one in other.parameters()}
    return [name for name, one in model.named_parameters() if _place(one) not in theirs]


_Place = tuple[int, torch.Size, tuple[int, ...]]


def _place(one: torch.Tensor) -> _Place:
    return one.data_ptr(), one.shape, one.stride()


def _frozen(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _only_multiplied(models: Sequence[nn.Module]) -> set[_Place]:
    """Return where the matrices are that linear layers multiply by, and nothing else uses."""
    linear: set[_Place] = set()
    other: set[_Place] = set()
    for module in (module for model in models for module in model.modules()):
        for name, one in module._parameters.items():
            if one is not None:
                multiplies = name == "weight" and type(module) in (nn.Linear, Conv1D)
                (linear if multiplies else other).add(_place(one))
    return linear - other


def _held(weight: torch.Tensor, computed_in: torch.dtype, *, multiplied: bool) -> torch.Tensor:
    if weight.dim() < _MATRIX:
        return weight.float()
    if multiplied and computed_in.itemsize <= weight.dtype.itemsize:
        return weight.to(computed_in)  # what autocast takes as it is
    return weight if weight.dtype == torch.float32 == computed_in else FrozenWeight(weight)


def release(modules: Iterable[nn.Module]) -> None:
    """Let the weights of modules go that nothing will run any more."""
    for module in modules:
        for name, one in module._parameters.items():
            if one is not None:
                module._parameters[name] = _frozen(torch.empty_like(one, device="meta"))


def _replace(model: nn.Module, new: Mapping[int, nn.Parameter]) -> None:
    """Put parameters in the place of others, by their id, wherever these are."""
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None and id(one) in new:
                module._parameters[name] = new[id(one)]


def _widen_buffers(model: nn.Module) -> None:
    for module in model.modules():
        for name, one in module._buffers.items():
            if one is not None and one.is_floating_point() and one.dtype.itemsize < torch.float32.itemsize:
                module._buffers[name] = one.float()
