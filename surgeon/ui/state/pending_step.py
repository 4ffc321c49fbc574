"""One operation before it is applied: its options, its layers, and its evaluation on the current draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from surgeon.core.recipe.operation import operations, selection_fields
from surgeon.core.recipe.recipe import Step
from surgeon.core.selection.part_selection import PartSelection
from surgeon.core.selection.selection import spans
from surgeon.core.selection.spot_selection import SpotSelection
from surgeon.errors import SurgeonError
from surgeon.session import Preview, Session


@dataclass(frozen=True)
class PendingStep:
    """An operation that is not applied yet. `positions` are the selected layers, if known.

    preview, error: one of them is set once the step is evaluated.
    shift: how many positions the selected layers move, for an operation that takes an order.
    """

    operation: str
    fields: Mapping[str, Any]
    positions: tuple[int, ...] = ()
    preview: Preview | None = None
    error: SurgeonError | None = None
    marks_before: frozenset[str] = field(default_factory=frozenset)
    shift: int = 0

    @property
    def evaluated(self) -> bool:
        """Whether its effect, or the error, is known."""
        return self.preview is not None or self.error is not None

    @property
    def reorders(self) -> bool:
        """Whether the operation takes an order of all layers, so that the selected ones are moved."""
        fields = msgspec.structs.fields(operations()[self.operation])
        return any(field.encode_name == "order" and field.required for field in fields)

    @property
    def takes_layers(self) -> bool:
        """Whether the operation applies to selected layers at all."""
        return self.reorders or bool(layer_fields(self.operation))

    @property
    def incomplete(self) -> bool:
        """Whether it needs more than layers: an option without a default."""
        fields = msgspec.structs.fields(operations()[self.operation])
        filled = {"order", *layer_fields(self.operation), *self.fields}
        return any(field.required and field.encode_name not in filled for field in fields)

    def with_positions(self, session: Session, positions: tuple[int, ...], shift: int = 0) -> PendingStep:
        """Return the same operation on other layers, evaluated."""
        selectors = layer_fields(self.operation)
        fields = {name: value for name, value in self.fields.items() if name not in selectors}
        if self.reorders:
            count = len(session.draft.layers(self.fields.get("stack")))
            fields["order"] = shifted_order(count, positions, shift)
        elif selectors:
            fields[selectors[0]] = spans(positions) if positions else []
        step = evaluate_operation(session, self.operation, fields, self.marks_before)
        return replace(step, positions=positions, shift=shift) if self.reorders or not step.preview else step


def shifted_order(count: int, positions: tuple[int, ...], shift: int) -> list[int]:
    """Return the order of `count` layers with the selected ones together, moved by `shift` positions."""
    rest = [position for position in range(count) if position not in positions]
    start = min(max(min(positions, default=0) + shift, 0), len(rest))
    return [*rest[:start], *sorted(positions), *rest[start:]]


def layer_fields(operation: str) -> list[str]:
    """Return the fields of an operation that select layers, or what they hold of the same name; the main one first.

    Marked layers go into the main one; one that selects numbered parts of layers has no use for them.
    """
    found = selection_fields(operations()[operation])
    return [name for name, kind in found.items() if not issubclass(kind, PartSelection)]


def evaluate_operation(
    session: Session, operation: str, fields: Mapping[str, Any], marks: frozenset[str] = frozenset()
) -> PendingStep:
    """Evaluate an operation on the current draft. Changes nothing and raises nothing: a refusal is in `error`."""
    try:
        step = session.step(operation, fields)
        preview = session.preview(step)
    except SurgeonError as error:
        return PendingStep(operation, fields, error=error, marks_before=marks)
    return PendingStep(operation, fields, selected_positions(session, step), preview, marks_before=marks)


def selected_positions(session: Session, step: Step) -> tuple[int, ...]:
    """Return the layers that a step applies to."""
    layers = session.draft.layers(step.operation.stack)
    for name, selection in step.operation.selections().items():
        resolved = step.resolved.get(name) if step.resolved else None
        if isinstance(selection, SpotSelection):
            matrices = resolved if resolved is not None else selection.spots(session.draft, step.operation.stack, {})
            return tuple(sorted({int(str(matrix).partition(".")[0]) for matrix in matrices}))
        return tuple(map(int, resolved)) if resolved is not None else selection.positions(layers)
    return ()
