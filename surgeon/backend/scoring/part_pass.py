"""The pass of scores of parts: what enters the matrices behind MLPs and attention, and which experts tokens go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from surgeon.backend.model.layer_building import loaded_division
from surgeon.backend.model.quantised_models import require_values
from surgeon.backend.model.streaming import weights_of
from surgeon.backend.scoring.context import ScoringContext
from surgeon.backend.scoring.layer_passes import push_layers
from surgeon.core.parts.division import Division, PartKind
from surgeon.core.plan.draft import Draft
from surgeon.core.scoring.part_scores import PartCollector, PartInputs, PartScore, RoutedTokens
from surgeon.core.scoring.score import Average, Provenance, Score
from surgeon.errors import ArchitectureError

_OUT = {"neurons": "mlp.down", "heads": "attention.output"}

Collectors = Mapping[str, PartCollector]


@torch.inference_mode()
def parts_pass(context: ScoringContext, kinds: Sequence[PartScore], provenance: Provenance) -> dict[str, Score]:
    """Push every layer over all batches once, and let every score watch its parts.

    Raises:
        ArchitectureError: no layer has such parts, or they cannot be told apart in the loaded model.
    """
    if any(kind.part != "experts" for kind in kinds):
        require_values(context.draft.structure, context.runner.layers, ", ".join(kind.name for kind in kinds))
    watched = _Layers(context, kinds)
    values: dict[str, dict[str, float]] = {kind.name: {} for kind in kinds}
    parts: dict[str, dict[str, list[float]]] = {kind.name: {} for kind in kinds}
    for one in push_layers(context.runner, context.batches, context.job.is_cancelled, context.room, watched.watch):
        if not one.last:
            continue
        key, collectors = context.keys[one.layer], watched.take()
        for kind in kinds:
            found = collectors[kind.name].values() if kind.name in collectors else []
            values[kind.name][key] = kind.layer(found)
            if found:
                parts[kind.name][key] = found
            context.scored(kind.name, one.layer, Average(values[kind.name][key]))
        context.progress(one.layer + 1, len(context.keys), "parts")
    return {
        kind.name: Score(name=kind.name, values=values[kind.name], parts=parts[kind.name], provenance=provenance)
        for kind in kinds
    }


class _Layers:
    """Hooks on the modules of a layer that hand parts on, and what has been seen of it."""

    def __init__(self, context: ScoringContext, kinds: Sequence[PartScore]) -> None:
        self._context, self._draft, self._kinds = context, context.draft, kinds
        self._collectors: dict[str, PartCollector] = {}
        wanted = {kind.part for kind in kinds if kind.part}
        self._divisions = list(_divisions(context.draft, context.runner.layers, wanted))
        for kind in kinds:
            if not any(kind.part in divisions for divisions in self._divisions):
                raise ArchitectureError(
                    f"no layer of it has {kind.part}", where=f"model_type {context.draft.structure.model_type}",
                    allowed=f"models with {kind.part}", hint=f"{kind.name} cannot be measured here",
                )  # fmt: skip

    def watch(self, number: int, layer: nn.Module) -> ExitStack:
        """Return a context in which all parts of the layer that scores want are watched."""
        stack, divisions = ExitStack(), self._divisions[number]
        self._collectors = {kind.name: kind.collector() for kind in self._kinds if kind.part in divisions}
        for part, division in divisions.items():
            mine = [self._collectors[kind.name] for kind in self._kinds if kind.part == part]
            if part == "experts":
                experts = _experts_module(self._draft, layer, division)
                hook = _routing_hook(division.count, mine)
                stack.enter_context(experts.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                module, norms_PW = _leading_out(self._context, layer, part, division)
                stack.enter_context(module.register_forward_pre_hook(_input_hook(norms_PW, mine)))
        return stack

    def take(self) -> Collectors:
        """Return what the layer's scores have seen."""
        return self._collectors


def _divisions(draft: Draft, layers: nn.ModuleList, wanted: set[PartKind]) -> Iterator[dict[PartKind, Division]]:
    stack = draft.structure.stack()
    for layer in layers:
        with weights_of(layer):
            found = {part: loaded_division(draft.structure, stack, layer, part) for part in sorted(wanted)}
        yield {part: division for part, division in found.items() if division is not None}


def _leading_out(
    context: ScoringContext, layer: nn.Module, part: str, division: Division
) -> tuple[nn.Module, torch.Tensor]:
    """Return the module that a layer's neurons or heads lead into, and the norms of its columns, part by part."""
    draft, state = context.draft, layer.state_dict(keep_vars=True)
    for name, cut in division.cuts.items():
        if draft.structure.role(name) == _OUT[part] and state[name].dim() == 2 and name.endswith(".weight"):
            module, weight = layer.get_submodule(name.removesuffix(".weight")), state[name].detach().float()
            if module in context.updates:
                weight = weight + context.updates[module].weight
            norms = torch.linalg.vector_norm(weight, dim=1 - cut.axis)
            return module, norms.reshape(division.count, -1)
    raise ArchitectureError(
        f"no module is known that {part} lead into", where=f"model_type {draft.structure.model_type}",
        allowed="MLPs and attention that end in a linear layer",
    )  # fmt: skip


def _input_hook(norms_PW: torch.Tensor, collectors: Sequence[PartCollector]) -> Callable[..., None]:
    def note(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        batch = PartInputs(args[0].detach().reshape(-1, *norms_PW.shape), norms_PW)
        for collector in collectors:
            collector.see_inputs(batch)

    return note


def _experts_module(draft: Draft, layer: nn.Module, division: Division) -> nn.Module:
    structure = draft.structure
    names = [name for name in division.cuts if structure.role(name).startswith("experts.")]
    modules = {name.rpartition(".")[0] for name in names}
    if len(modules) == 1:
        return layer.get_submodule(modules.pop())
    raise ArchitectureError(
        "its experts are not one module once they are loaded", where=f"model_type {structure.model_type}",
        allowed="experts that are stacked in memory", hint="choose experts by their numbers",
    )  # fmt: skip


def _routing_hook(count: int, collectors: Sequence[PartCollector]) -> Callable[..., None]:
    busy = False

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal busy
        if busy:  # called from here, for the outputs of single experts
            return
        busy = True
        try:
            batch = _routed(module, [*args, *kwargs.values()], count)
            for collector in collectors:
                collector.see_routing(batch)
        finally:
            busy = False

    return note


def _routed(experts: nn.Module, given: Sequence[Any], count: int) -> RoutedTokens:
    """Return what a call of stacked experts says: tokens, which experts they go to, and with which weights.

    Raises:
        ArchitectureError: it is called with anything else.
    """
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    if not _says_routes(tensors):
        raise ArchitectureError(
            "is not called with tokens, the experts they go to, and their weights",
            where=f"module {type(experts).__name__}",
            allowed="experts called with hidden_states, top_k_index, top_k_weights",
            hint="choose experts by their numbers",
        )
    tokens_ND, index_NK, weights_NK = (one.detach() for one in tensors)
    tokens_ND = tokens_ND.reshape(-1, tokens_ND.shape[-1])
    # Behind the experts there may be choices that are none, such as experts that do nothing.
    real_NK = index_NK < count
    place_NK = index_NK.clamp(max=count - 1)
    zeros_NE = weights_NK.new_zeros((len(tokens_ND), count))
    gates_NE = zeros_NE.scatter_add(1, place_NK, weights_NK * real_NK)
    chosen_NE = zeros_NE.scatter_add(1, place_NK, real_NK.to(weights_NK.dtype)) > 0

    def output_norms() -> torch.Tensor:
        norms_NE = torch.zeros_like(gates_NE, dtype=torch.float32)
        for expert in range(count):
            rows = chosen_NE[:, expert].nonzero().flatten()
            if len(rows):
                one = torch.full((len(rows), 1), expert, dtype=index_NK.dtype, device=index_NK.device)
                out = experts(tokens_ND[rows], one, torch.ones_like(one, dtype=weights_NK.dtype))
                norms_NE[rows, expert] = torch.linalg.vector_norm(out.float(), dim=-1)
        return norms_NE

    return RoutedTokens(gates_NE, chosen_NE, output_norms)


def _says_routes(tensors: Sequence[torch.Tensor]) -> bool:
    if len(tensors) != 3:
        return False
    tokens, index, weights = tensors
    return (
        tokens.is_floating_point()
        and index.dim() == 2
        and not index.is_floating_point()
        and index.shape == weights.shape
        and weights.is_floating_point()
        and tokens.numel() == len(index) * tokens.shape[-1]
    )
