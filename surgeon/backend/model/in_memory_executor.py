"""The in-memory executor: the same draft applied to a loaded model by rearranging its layer modules.

Unchanged layers are shared, not copied; inserted ones are real copies. On leaving, the model is the base again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.matrices import truncate
from surgeon.backend.model.per_layer_slices import swap_slices
from surgeon.backend.model.streaming import weights_of, without_hooks
from surgeon.backend.model.tensors import DTYPES, mean_of, tensor_reader
from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.plan.draft import Draft, Identity, Learned, Original, Source, Truncated, base_tensors
from surgeon.core.plan.expressions import truncated_pieces
from surgeon.core.plan.learned_results import layer_tensor, outside_tensor, result_tensors
from surgeon.core.plan.plan import compile_config
from surgeon.core.plan.tied_head import outside_tensors, results_of, tied_names
from surgeon.core.structure.structure import Stack, Structure
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
        self._attributes = _swap_configs(self.model, compile_config(draft))
        self._attributes += swap_slices(self.model, draft)
        self._attributes += _swap_outside(self.model, draft)
        for name, layers in draft.stacks.items():
            stack = draft.structure.stacks[name]
            modules = layer_list(self.model, stack)
            base = list(modules)
            edited = _assemble(draft.structure, stack, [layer.source for layer in layers], base)
            self._lists.append((modules, base, edited))
            _refill(modules, edited)

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


def _assemble(structure: Structure, stack: Stack, sources: list[Source], base: list[nn.Module]) -> list[nn.Module]:
    used: set[int] = set()
    edited = []
    for source in sources:
        if isinstance(source, Original) and source.index not in used:
            used.add(source.index)
            edited.append(base[source.index])
        else:
            edited.append(_build(structure, stack, source, base))
    return edited


def _build(structure: Structure, stack: Stack, source: Source, base: list[nn.Module]) -> nn.Module:
    if isinstance(source, Original):
        with weights_of(base[source.index]) as layer:
            return without_hooks(copy.deepcopy(layer))
    if isinstance(source, Identity):
        module = _build(structure, stack, source.of, base)
        ways = {silence.role: silence.value for silence in structure.silence(base_tensors(source, stack))}
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                role = structure.role(name)
                if role in ways:
                    tensor.fill_(ways[role])
        return module
    if isinstance(source, Truncated):
        module = _build(structure, stack, source.of, base)
        stored = _stored_dtypes(structure, stack, source)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if pieces := truncated_pieces(structure, stack, source, name, tuple(parameter.shape)):
                    weight = parameter.to(stored.get(name, parameter.dtype), copy=True)
                    truncate(weight, pieces, source.how)
                    parameter.copy_(weight)
        return module
    if isinstance(source, Learned):
        module = _build(structure, stack, source.of, base)
        _restore_learned(structure, module, source, stack)
        return module
    module, *others = (_build(structure, stack, part, base) for part in source.parts)
    weights = [other.state_dict() for other in others]
    stored = _stored_dtypes(structure, stack, source)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                parts = (value, *(other[name] for other in weights))
                value.copy_(mean_of([part.to(stored.get(name, part.dtype)) for part in parts]))
    return module


def _stored_dtypes(structure: Structure, stack: Stack, source: Source) -> dict[str, torch.dtype]:
    """Return by live name what a layer's tensors are stored in: an export rounds to it, and so do we.

    Otherwise a model that is computed in float32 would be measured with other weights than are written.
    """
    known = not structure.family.renamed
    return {
        _live_suffix(structure, stack, suffix) if known else suffix: DTYPES[tensor.dtype]
        for suffix, tensor in base_tensors(source, stack).items()
        if tensor.dtype in FLOATS
    }


def _restore_learned(structure: Structure, module: nn.Module, source: Learned, stack: Stack) -> None:
    """Give a layer the tensors that a learned step left it with."""
    stored = result_tensors(source.address)
    live = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with tensor_reader() as reader, torch.no_grad():
        for suffix in base_tensors(source, stack):
            found = stored.get(layer_tensor(stack.name, source.key, suffix))
            if found is not None:
                live[_live_suffix(structure, stack, suffix)].copy_(reader.read(found))


def _live_suffix(structure: Structure, stack: Stack, suffix: str) -> str:
    """Return what a tensor of a layer is called within the loaded layer."""
    (live,) = structure.memory_names([stack.tensor_name(0, suffix)])
    return live.partition(".0.")[2]


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


def _swap_configs(model: nn.Module, plain: dict[str, Any]) -> list[tuple[nn.Module, str, Any]]:
    """Give every submodule the edited config it belongs to; return (module, attribute, what it had before)."""
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
    return [
        *swapped,
        *(change for before, after in ((old, new), *parts) for change in _swap_copies(model, before, after)),
    ]


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
