"""The rows of the layer table: every layer that is or was in the model, with pruned layers at their old places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.core.plan.draft import Draft, Grafted, Layer, Mean, Original, Part, Silenced, Source, Truncated
from surgeon.core.plan.plan import layer_roles
from surgeon.session import Session
from surgeon.ui.state.parameter_counts import layer_parameters


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One row of the table.

    position: in the current model; None once removed.   removed_by: the step that removed it, counted from 1.
    states: short words, the most important one first.
    """

    key: str
    position: int | None
    layer: Layer
    parameters: int
    states: tuple[str, ...]
    removed_by: int | None = None


def build_rows(session: Session, stack: str) -> tuple[LayerRow, ...]:
    """Return the rows of one stack after the applied steps."""
    known: dict[str, Layer] = {}
    removed: dict[str, int] = {}
    order: list[str] = []
    for number in range(session.position + 1):
        layers = session.draft_at(number).layers(stack)
        order = _merge_order(order, [layer.key for layer in layers])
        present = {layer.key: layer for layer in layers}
        for key in known.keys() - present.keys():
            removed.setdefault(key, number)
        for key, layer in present.items():
            known[key] = layer
            removed.pop(key, None)
    draft = session.draft
    positions = {layer.key: position for position, layer in enumerate(draft.layers(stack))}
    return tuple(
        LayerRow(
            key=key,
            position=positions.get(key),
            layer=known[key],
            parameters=layer_parameters(draft, known[key], stack),
            states=_states(draft, known[key], stack, removed),
            removed_by=removed.get(key),
        )
        for key in order
    )


def _merge_order(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Return the current keys with each removed key behind the neighbour that it had."""
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


def source_text(source: Source) -> str:
    """Describe where a layer's weights come from."""
    if isinstance(source, Original | Grafted):
        other = f"layer {source.index} of the model {source.donor}" if isinstance(source, Grafted) else ""
        return other or f"base layer {source.index}"
    if isinstance(source, Mean):
        *others, last = map(source_text, source.parts)
        return f"the mean of {', '.join(others)} and {last}"
    if isinstance(source, Truncated):
        return f"{source_text(source.of)}, {', '.join(sorted(source.roles))} truncated"
    if isinstance(source, Part):
        return f"{source_text(source.of)}, {len(source.kept)} {source.kind} kept"
    if isinstance(source, Silenced):
        return f"{source_text(source.of)}, {' and '.join(sorted(source.sublayers))} silent"
    return f"{type(source).__name__.lower()} of {source_text(source.of)}"
