"""What the table lists: every layer that is or was in the model, in an order that keeps pruned ones in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from surgeon.core.plan.draft import Draft, Layer, Mean, Original, Source, Truncated, base_tensors
from surgeon.core.plan.plan import Plan, layer_roles
from surgeon.core.plan.tied_head import outside_tensors
from surgeon.session import Session


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    position: in the current model; None once removed.   removed_by: the step that did it, counted from 1.
    states: short words, the most important one first.
    """

    key: str
    position: int | None
    layer: Layer
    parameters: int
    states: tuple[str, ...]
    removed_by: int | None = None


def rows_of(session: Session, stack: str) -> tuple[Row, ...]:
    """Return the rows of one stack after the applied steps."""
    seen: dict[str, Layer] = {}
    removed: dict[str, int] = {}
    order: list[str] = []
    for number in range(session.position + 1):
        layers = session.draft_at(number).layers(stack)
        order = _merged(order, [layer.key for layer in layers])
        present = {layer.key: layer for layer in layers}
        for key in seen.keys() - present.keys():
            removed.setdefault(key, number)
        for key, layer in present.items():
            seen[key] = layer
            removed.pop(key, None)
    draft = session.draft
    positions = {layer.key: at for at, layer in enumerate(draft.layers(stack))}
    rows = []
    for key in order:
        layer = seen[key]
        states = _states(draft, layer, stack, removed)
        rows.append(
            Row(key, positions.get(key), layer, layer_parameters(draft, layer, stack), states, removed.get(key))
        )
    return tuple(rows)


def _merged(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Put the keys that are gone behind the neighbours they had."""
    present = set(now)
    if [key for key in before if key in present] != [key for key in now if key in set(before)]:
        return [*now, *(key for key in before if key not in present)]
    merged: list[str] = []
    rest = iter(now)
    for key in before:
        if key in present:
            for following in rest:
                merged.append(following)
                if following == key:
                    break
        else:
            merged.append(key)
    merged.extend(rest)
    return merged


def _states(draft: Draft, layer: Layer, stack: str, removed: dict[str, int]) -> tuple[str, ...]:
    if layer.key in removed:
        return (f"pruned·{removed[layer.key]}",)
    states = ["new"] if layer.inserted else []
    if not layer.inserted and not isinstance(layer.source, Original):
        states.append(type(layer.source).__name__.lower())
    if layer.frozen:
        states.append("FROZEN" if layer.frozen >= layer_roles(draft, layer, stack) else "frozen½")
    if layer.lora:
        ranks = sorted({lora.rank for lora in layer.lora.values()})
        states.append("LoRA" + "/".join(map(str, ranks)))
    return tuple(states)


def layer_parameters(draft: Draft, layer: Layer, stack: str) -> int:
    """Return the stored elements of one layer."""
    return sum(tensor.parameters for tensor in base_tensors(layer.source, draft.structure.stack(stack)).values())


def draft_parameters(draft: Draft) -> int:
    """Return what `Plan.parameters` will be, without compiling the plan."""
    structure = draft.structure

    @cache
    def of(stack: str, source: Source) -> int:
        return sum(tensor.parameters for tensor in base_tensors(source, structure.stacks[stack]).values())

    inside = sum(of(name, layer.source) for name, layers in draft.stacks.items() for layer in layers)
    return inside + sum(tensor.parameters for tensor in outside_tensors(draft).values())


def adapter_parameters(plan: Plan) -> int:
    """Return the elements of all adapters' matrices."""
    return sum(adapter.lora.rank * sum(adapter.shape) for adapter in plan.adapters)


def trainable_parameters(plan: Plan) -> int:
    """Return the stored elements that no step froze."""
    return sum(tensor.parameters for tensor in plan.tensors if tensor.name not in plan.frozen)


def source_text(source: Source) -> str:
    """Say where a layer's weights come from."""
    if isinstance(source, Original):
        return f"base layer {source.index}"
    if isinstance(source, Mean):
        *others, last = map(source_text, source.parts)
        return f"the mean of {', '.join(others)} and {last}"
    if isinstance(source, Truncated):
        return f"{source_text(source.of)}, {', '.join(sorted(source.roles))} truncated"
    return f"{type(source).__name__.lower()} of {source_text(source.of)}"
