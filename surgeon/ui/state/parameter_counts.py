"""How many parameters a layer, a draft or its adapters have."""

from __future__ import annotations

from functools import cache

from surgeon.core.plan.draft import Draft, Layer, Source
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.plan.plan import Plan
from surgeon.core.plan.tied_head import outside_tensors
from surgeon.core.recipe.learning_step import is_free
from surgeon.core.structure.structure import Structure


def layer_parameters(draft: Draft, layer: Layer, stack: str) -> int:
    """Return the stored elements of one layer."""
    return layout_of(draft.structure, draft.structure.stack(stack), layer.source).parameters


def module_parameters(structure: Structure, source: Source, stack: str) -> dict[str, int]:
    """Return the parameters of a layer by the kind of module that they belong to, such as attention or mlp."""
    counts: dict[str, int] = {}
    for suffix, one in layout_of(structure, structure.stack(stack), source).types.items():
        kind = structure.role(suffix).partition(".")[0]
        counts[kind] = counts.get(kind, 0) + one.parameters
    return counts


def draft_parameters(draft: Draft) -> int:
    """Return what `Plan.parameters` will be, without compiling the plan."""
    structure = draft.structure

    @cache
    def count(stack: str, source: Source) -> int:
        return layout_of(structure, structure.stacks[stack], source).parameters

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
