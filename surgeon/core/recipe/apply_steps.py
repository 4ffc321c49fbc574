"""Folds steps over a draft. The only place where a step meets the model at that step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.plan.draft import Draft, Part, Silenced
from surgeon.core.recipe.learning_step import LEARNED
from surgeon.core.recipe.operation import Chosen
from surgeon.core.recipe.recipe import Step
from surgeon.core.scoring.score import Score
from surgeon.core.selection.outcomes import layer_contradiction
from surgeon.core.selection.selection import Ranked
from surgeon.core.selection.spot_selection import SpotSelection, split_spot
from surgeon.errors import ArchitectureError, RecipeError, SelectionError

Measured = Mapping[Ranked, Score]


def fold(draft: Draft, steps: Iterable[Step]) -> Draft:
    """Apply steps in order; measured selections must be resolved.

    Raises:
        RecipeError: a step does not fit the model at that step; the message names the step and the field.
        ArchitectureError: the model cannot express the result of a step.
    """
    for number, step in enumerate(steps):
        draft = apply_step(draft, step, number)
    return draft


def pin_step(step: Step, root: Path) -> Step:
    """Return a step of a recipe in `root` with the fingerprints of other models that it names written in."""
    operation = step.operation.pinned(root)
    return step if operation is step.operation else msgspec.structs.replace(step, operation=operation)


def resolve_step(draft: Draft, step: Step, number: int, measured: Measured) -> Step:
    """Write what the step's measured selections come to on this draft into `resolved`."""
    if step.resolved is not None or not step.operation.ranked():
        return step
    chosen = _chosen(draft, step, number, measured)
    return msgspec.structs.replace(step, resolved=dict(chosen))


def apply_step(draft: Draft, step: Step, number: int, measured: Measured | None = None) -> Draft:
    """Apply one step, the one at `number` of its recipe (for messages)."""
    try:
        return step.operation.apply(draft, _chosen(draft, step, number, measured or {}))
    except (RecipeError, ArchitectureError) as error:
        raise _at(error, f"steps[{number}].{step.operation.name}", "") from error


def _chosen(draft: Draft, step: Step, number: int, measured: Measured) -> Chosen:
    layers, resolved = draft.layers(step.operation.stack), step.resolved or {}
    selections = step.operation.selections()
    chosen: dict[str, tuple[Any, ...]] = {LEARNED: resolved[LEARNED]} if LEARNED in resolved else {}
    stray = [field for field in resolved if field not in (LEARNED, *selections)]
    if stray:
        raise _contradicts(step, number, stray[0], "says nothing of it")
    for field, selection in selections.items():
        try:
            if field in resolved:
                chosen[field] = _resolved(draft, step, number, field)
            elif isinstance(selection, SpotSelection):
                chosen[field] = selection.spots(draft, step.operation.stack, measured)
            else:
                chosen[field] = selection.positions(layers, measured)
        except SelectionError as error:
            raise _at(error, f"steps[{number}].{step.operation.name}", field) from error
    return chosen


def _resolved(draft: Draft, step: Step, number: int, field: str) -> tuple[Any, ...]:
    """Return what a field was resolved to, where that can be what its words come to on this draft."""
    assert step.resolved is not None
    selection, found, stack = step.operation.selections()[field], step.resolved[field], step.operation.stack
    layers, where = draft.layers(stack), f"steps[{number}].resolved.{field}"
    if isinstance(selection, SpotSelection):
        _in_range([split_spot(spot, "spot", "3.mlp.up")[0] for spot in found], len(layers), where)
        says = selection.contradiction(tuple(map(str, found)), draft, stack)
    else:
        found = _in_range(found, len(layers), where)
        says = layer_contradiction(selection, found, layers)
    if says:
        raise _contradicts(step, number, field, f"says {selection}, which {says}")
    return found


def _contradicts(step: Step, number: int, field: str, says: str) -> SelectionError:
    assert step.resolved is not None
    return SelectionError(
        f"is {', '.join(map(str, step.resolved[field])) or 'none'}, but {step.operation.name} {says}",
        where=f"steps[{number}].resolved.{field}",
        hint="take `resolved` out, and it is resolved anew; or put back the words that it was resolved for",
    )


def _in_range(positions: Sequence[Any], count: int, where: str) -> tuple[int, ...]:
    stray = [position for position in positions if not isinstance(position, int) or not 0 <= position < count]
    if stray:
        raise SelectionError(
            f"{stray[0]} is out of range", where=where, allowed=f"the model has layers 0-{count - 1} at this step"
        )
    return tuple(sorted(set(positions)))


def _at(error: RecipeError | ArchitectureError, step: str, field: str) -> RecipeError | ArchitectureError:
    if error.where.startswith("steps["):
        return error
    where = ".".join(part for part in (step, field) if part)
    inner = error.where
    joined = f"{where}.{inner}" if inner and isinstance(error, RecipeError) else where + (f", {inner}" if inner else "")
    return type(error)(error.what, where=joined, allowed=error.allowed, hint=error.hint)


def changes_of(before: Draft, after: Draft) -> str:
    """Say in a few words how many layers a step removed, inserted or cut, and whether it untied the head."""
    parts = []
    for name in before.stacks:
        old, new = {layer.key for layer in before.stacks[name]}, {layer.key for layer in after.stacks[name]}
        parts += [f"removed {len(old - new)}"] if old - new else []
        parts += [f"inserted {len(new - old)}"] if new - old else []
        sources = {layer.key: layer.source for layer in before.stacks[name]}
        made = [layer.source for layer in after.stacks[name] if layer.source != sources.get(layer.key, layer.source)]
        for kind, said in ((Part, "cut"), (Silenced, "silenced a part of")):
            count = sum(isinstance(source, kind) for source in made)
            parts += [f"{said} {count}"] if count else []
    parts += ["untied the head"] if before.untied is None and after.untied is not None else []
    return ", ".join(parts)


def measured_draft(draft: Draft) -> Draft:
    """Return the draft without freezes and untrained adapters: everything that the model computes depends on."""
    stacks = {
        name: tuple(
            replace(layer, frozen=frozenset(), lora={role: one for role, one in layer.lora.items() if one.address})
            for layer in layers
        )
        for name, layers in draft.stacks.items()
    }
    return replace(draft, stacks=stacks, frozen=frozenset())


def unfrozen(draft: Draft) -> Draft:
    """Return the draft without freezes and adapters: what the weights alone are."""
    stacks = {
        name: tuple(replace(layer, frozen=frozenset(), lora={}) for layer in layers)
        for name, layers in draft.stacks.items()
    }
    return replace(draft, stacks=stacks, frozen=frozenset())
