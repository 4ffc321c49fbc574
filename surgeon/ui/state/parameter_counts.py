"""How many parameters a layer, a draft or its adapters have."""

from __future__ import annotations

from functools import cache

from surgeon.core.plan.draft import Draft, Layer, Source, base_tensors
from surgeon.core.plan.plan import Plan
from surgeon.core.plan.tied_head import outside_tensors
from surgeon.core.recipe.learning_step import is_free
from surgeon.core.structure.structure import Structure


def layer_parameters(draft: Draft, layer: Layer, stack: str) -> int:
    """Return the stored elements of one layer."""
    return sum(tensor.parameters for tensor in base_tensors(layer.source, draft.structure.stack(stack)).values())


def module_parameters(structure: Structure, source: Source, stack: str) -> dict[str, int]:
    """Return the parameters of a layer by the kind of module that they belong to, such as attention or mlp."""
    counts: dict[str, int] = {}
    for suffix, tensor in base_tensors(source, structure.stack(stack)).items():
        kind = structure.role(suffix).partition(".")[0]
        counts[kind] = counts.get(kind, 0) + tensor.parameters
    return counts


def draft_parameters(draft: Draft) -> int:
    """Return what `Plan.parameters` will be, without compiling the plan."""
    structure = draft.structure

    @cache
    def count(stack: str, source: Source) -> int:
        return sum(tensor.parameters for tensor in base_tensors(source, structure.stacks[stack]).values())

    in_layers = sum(count(name, layer.source) for name, layers in draft.stacks.items() for layer in layers)
    return in_layers + sum(tensor.parameters for tensor in outside_tensors(draft).values())


def adapter_parameters(plan: Plan) -> int:
    """Return the elements of all adapters' matrices."""
    return sum(adapter.lora.rank * sum(adapter.shape) for adapter in plan.adapters)


def trainable_parameters(draft: Draft, plan: Plan) -> int:
    """Return what a training would train: the adapters where there are any, else the elements that no step froze."""
    if plan.adapters:
        return sum(one.lora.rank * sum(one.shape) for one in plan.adapters if is_free(draft, one))
    return plan.trainable_parameters
