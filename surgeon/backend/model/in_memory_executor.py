"""The in-memory executor: the same draft applied to a loaded model by rearranging its layer modules.

Unchanged layers are shared, not copied; inserted ones are real copies. On leaving, the model is the base again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from surgeon.backend.model.layer_building import LayerShells, assemble
from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.loading import forget_donor
from surgeon.backend.model.tensors import DTYPES, calculated, tensor_reader
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import outside_tensor, result_tensors
from surgeon.core.plan.plan import compile_config
from surgeon.core.plan.planned_outside import sliced
from surgeon.core.plan.tied_head import outside_tensors, results_of, tied_names
from surgeon.errors import ArchitectureError

_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")


class EditedModel:
    """A loaded model that can be arranged as a draft has it, or as the base: both share what is unchanged."""

    def __init__(self, model: nn.Module) -> None:
        """Start as the base."""
        self.model = model
        self._lists: list[tuple[nn.ModuleList, list[nn.Module], list[nn.Module]]] = []
        self._attributes: list[tuple[Any, str, Any]] = []

    def build(self, draft: Draft) -> None:
        """Arrange the model as the draft has it; layers that are not the base's own are built here, once."""
        config, self._attributes = _swap_configs(self.model, compile_config(draft))
        self._attributes += swap_slices(self.model, draft)
        self._attributes += _swap_outside(self.model, draft)
        for name, layers in draft.stacks.items():
            stack = draft.structure.stacks[name]
            modules = layer_list(self.model, stack)
            base = list(modules)
            shells = LayerShells(self.model, config, stack, len(layers))
            edited = assemble(draft.structure, stack, [layer.source for layer in layers], base, shells)
            self._lists.append((modules, base, edited))
            _refill(modules, edited)
        forget_donor()

    def restore(self) -> None:
        """Arrange the model as the base."""
        for modules, base, _ in self._lists:
            _refill(modules, base)
        for module, name, value in self._attributes:
            setattr(module, name, value)

    @contextmanager
    def as_base(self) -> Iterator[nn.Module]:
        """Yield the model arranged as the base for a while: comparing the two costs no second copy of the weights."""
        # The last value of an attribute that was swapped twice is the edited one.
        edited = {(id(module), name): (module, name, getattr(module, name)) for module, name, _ in self._attributes}
        self.restore()
        try:
            yield self.model
        finally:
            for module, name, value in edited.values():
                setattr(module, name, value)
            for modules, _, layers in self._lists:
                _refill(modules, layers)


@contextmanager
def edited_model(model: nn.Module, draft: Draft) -> Iterator[EditedModel]:
    """Yield a loaded model arranged as the draft has it, in evaluation mode; restore the base afterwards."""
    edited = EditedModel(model)
    try:
        edited.build(draft)
        yield edited
    finally:
        edited.restore()


@contextmanager
def apply_draft(model: nn.Module, draft: Draft) -> Iterator[nn.Module]:
    """Yield the model as the draft has it, in evaluation mode; restore the base afterwards."""
    with edited_model(model, draft) as edited:
        yield edited.model


def _swap_outside(model: nn.Module, draft: Draft) -> list[tuple[nn.Module, str, Any]]:
    """Untie the head and give tensors outside the layers what was learned; return (holder, attribute, what it had)."""
    swapped: list[tuple[Any, str, Any]] = [] if draft.untied is None else [_untie(model, draft)]
    live: dict[str, Any] = (
        {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())} if draft.learned else {}
    )
    with tensor_reader() as reader:
        for name in outside_tensors(draft):
            for address, then in results_of(draft, name):
                stored = result_tensors(address)
                if outside_tensor(then) in stored:
                    (own,) = draft.structure.memory_names([name])
                    before = live[own].data
                    swapped.insert(0, (live[own], "data", before))
                    live[own].data = reader.read(stored[outside_tensor(then)]).to(before.device, before.dtype)
    return swapped


def _untie(model: nn.Module, draft: Draft) -> tuple[nn.Module, str, Any]:
    """Give the head a copy of the embedding; return (module, attribute, what it had before).

    Raises:
        ArchitectureError: the loaded model's head is not tied to the embedding.
    """
    head, embedding = draft.structure.memory_names(tied_names(draft.structure))
    live = dict(model.named_parameters(remove_duplicate=False))
    tied = live.get(head)
    if tied is None or tied is not live.get(embedding):
        raise ArchitectureError(
            f"the loaded model's {head!r} is not its {embedding!r}", where=f"model_type {draft.structure.model_type}",
            hint="leave untie out: nothing is tied",
        )  # fmt: skip
    path, _, attribute = head.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, attribute, nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad))
    return module, attribute, tied


def _refill(modules: nn.ModuleList, layers: list[nn.Module]) -> None:
    del modules[:]
    modules.extend(layers)
    for position, layer in enumerate(layers):
        for part in layer.modules():
            for attribute in _NUMBERS:
                if isinstance(vars(part).get(attribute), int):
                    setattr(part, attribute, position)


def _with_infinities(value: Any) -> Any:
    """Return a config with the numbers that JSON cannot write, which transformers writes as mappings."""
    if isinstance(value, dict):
        named = value.get("__float__") if len(value) == 1 else None
        return float(named) if named else {key: _with_infinities(part) for key, part in value.items()}
    return [_with_infinities(part) for part in value] if isinstance(value, list) else value


def _swap_configs(model: nn.Module, plain: dict[str, Any]) -> tuple[Any, list[tuple[nn.Module, str, Any]]]:
    """Give every submodule the edited config it belongs to; return it, and (module, attribute, what it had before)."""
    old: Any = model.config
    new = type(old).from_dict(_with_infinities(plain))
    pairs = {id(old): new}
    parts = [
        (part, vars(new)[name])
        for name, part in vars(old).items()
        if isinstance(part, PreTrainedConfig) and name in vars(new)  # how weights are quantised is no model's config
    ]
    if hasattr(old, "quantization_config"):
        new.quantization_config = old.quantization_config
    pairs.update((id(before), after) for before, after in parts)
    for before, after in ((old, new), *parts):
        for chosen in ("_attn_implementation", "_experts_implementation"):
            if hasattr(before, chosen):
                setattr(after, chosen, getattr(before, chosen))
        after.dtype = before.dtype
    swapped = []
    for module in model.modules():
        config = vars(module).get("config")
        if id(config) in pairs:
            swapped.append((module, "config", config))
            module.config = pairs[id(config)]
    copies = (change for before, after in ((old, new), *parts) for change in _swap_copies(model, before, after))
    return new, [*swapped, *copies]


def _swap_copies(model: nn.Module, before: Any, after: Any) -> Iterator[tuple[nn.Module, str, Any]]:
    """Replace what modules have copied from the config: lists that say something of each layer, and counts."""
    changed = {
        name: value
        for name, value in vars(before).items()
        if isinstance(value, list | int) and vars(after).get(name) != value
    }
    for module in model.modules():
        for name in changed.keys() & vars(module).keys():
            if getattr(module, name) == changed[name]:
                yield module, name, changed[name]
                setattr(module, name, vars(after)[name])
        if "layer_dic" in vars(module) and "hybrid_layer_ids" in changed:  # Zamba 2: layer number to rank
            yield module, "layer_dic", module.layer_dic
            ranks = {index: rank for rank, index in enumerate(after.hybrid_layer_ids)}
            setattr(module, "layer_dic", ranks)  # noqa: B010 - nn.Module takes no dict by its stubs


def swap_slices(model: nn.Module, draft: Draft) -> list[tuple[nn.Module, str, Any]]:
    """Give the model the slices of the draft's layers; return (module, attribute, what it had before).

    Raises:
        ArchitectureError: a tensor cannot be cut, or the loaded model has no such parameter.
    """
    swapped = []
    for name, made, shape in sliced(draft):
        module, attribute = _holder(model, *draft.structure.memory_names([name]))
        whole = getattr(module, attribute)
        swapped.append((module, attribute, whole))
        # A mean of slices is rounded to what is stored, as an export does, also where the model computes in float32.
        dtype = draft.structure.outside[name].dtype
        cut = calculated(made, dtype, shape, partial(_as_stored, whole)).to(whole.dtype)
        setattr(module, attribute, nn.Parameter(cut, requires_grad=whole.requires_grad))
    return swapped


def _as_stored(whole: nn.Parameter, stored: Tensor) -> torch.Tensor:
    return whole.detach().to(DTYPES[stored.dtype])


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    ending = ".".join(name.split(".")[-2:])
    found = {other for other, _ in model.named_parameters() if other == name or other.endswith(f".{ending}")}
    found = {name} if name in found else found
    if len(found) != 1:
        raise ArchitectureError(
            "the loaded model has no parameter of that name",
            where=f"tensor {name!r}",
            hint="this model can be edited on disk, not measured or verified",
        )
    module, _, attribute = found.pop().rpartition(".")
    return model.get_submodule(module), attribute
