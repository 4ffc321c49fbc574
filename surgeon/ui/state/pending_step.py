"""One operation before it is applied: its options, the layers it is about, and what it would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from surgeon.core.recipe.command_text import option_text
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.operation import operations
from surgeon.core.recipe.recipe import Step, step_to_builtins
from surgeon.core.recipe.training_memory import trained_parameters, training_bytes
from surgeon.core.selection.matrix_selection import MatrixSelection
from surgeon.core.selection.selection import Selection, spans
from surgeon.errors import SurgeonError
from surgeon.session import Preview, Session
from surgeon.ui.state.formatting import bytes_change, bytes_text, count_change, count_text, value_text
from surgeon.ui.state.layer_rows import adapter_parameters, trainable_parameters
from surgeon.ui.state.score_columns import Board

_LONGEST = 32


@dataclass(frozen=True)
class Proposal:
    """What would be done. `positions` are the chosen layers, if known.

    preview, error: one of them is set once it has been judged.
    shift: how many places the chosen layers move, for an operation that takes an order.
    """

    operation: str
    fields: Mapping[str, Any]
    positions: tuple[int, ...] = ()
    preview: Preview | None = None
    error: SurgeonError | None = None
    marks_before: frozenset[str] = field(default_factory=frozenset)
    shift: int = 0

    @property
    def judged(self) -> bool:
        """Whether it is known what it would do."""
        return self.preview is not None or self.error is not None

    @property
    def moves(self) -> bool:
        """Whether the operation takes an order of all layers, so that the chosen ones are moved about."""
        fields = msgspec.structs.fields(operations()[self.operation])
        return any(field.encode_name == "order" and field.required for field in fields)

    @property
    def chooses(self) -> bool:
        """Whether the operation is about the chosen layers at all."""
        return self.moves or bool(selection_fields(self.operation))

    @property
    def incomplete(self) -> bool:
        """Whether it needs more than layers: an option that has no default."""
        fields = msgspec.structs.fields(operations()[self.operation])
        chosen = {"order", *selection_fields(self.operation)}
        return any(field.required and field.encode_name not in self.fields.keys() | chosen for field in fields)

    def with_positions(self, session: Session, positions: tuple[int, ...], shift: int = 0) -> Proposal:
        """Return the same operation on other layers."""
        others = selection_fields(self.operation)
        fields = {name: value for name, value in self.fields.items() if name not in others}
        if self.moves:
            count = len(session.draft.layers(self.fields.get("stack")))
            fields["order"] = moved(count, positions, shift)
        elif others:
            fields[others[0]] = spans(positions) if positions else []
        judged = propose(session, self.operation, fields, self.marks_before)
        return replace(judged, positions=positions, shift=shift) if self.moves or not judged.preview else judged


def moved(count: int, positions: tuple[int, ...], shift: int) -> list[int]:
    """Return the order of `count` layers in which the chosen ones stand together, moved by `shift` places."""
    rest = [at for at in range(count) if at not in positions]
    start = min(max(min(positions, default=0) + shift, 0), len(rest))
    return [*rest[:start], *sorted(positions), *rest[start:]]


def selection_fields(operation: str) -> list[str]:
    """Return the fields of an operation that choose layers or matrices, the main one first."""
    kind = operations()[operation]
    return [field.encode_name for field in msgspec.structs.fields(kind) if mentions(field.type, Selection)]


def mentions(kind: Any, wanted: type) -> bool:
    """Whether a field's type is of a kind, perhaps annotated or optional."""
    plain = isinstance(kind, type) and issubclass(kind, wanted)
    return plain or any(mentions(part, wanted) for part in getattr(kind, "__args__", ()))


def propose(
    session: Session, operation: str, fields: Mapping[str, Any], marks: frozenset[str] = frozenset()
) -> Proposal:
    """Judge an operation on the current draft. Changes nothing and raises nothing: what is wrong is in `error`."""
    try:
        step = session.step(operation, fields)
        preview = session.preview(step)
    except SurgeonError as error:
        return Proposal(operation, fields, error=error, marks_before=marks)
    return Proposal(operation, fields, chosen_positions(session, step), preview, marks_before=marks)


def chosen_positions(session: Session, step: Step) -> tuple[int, ...]:
    """Return the layers that a judged step is about."""
    layers = session.draft.layers(step.operation.stack)
    for name, selection in step.operation.selections().items():
        resolved = step.resolved.get(name) if step.resolved else None
        if isinstance(selection, MatrixSelection):
            spots = resolved if resolved is not None else selection.spots(session.draft, step.operation.stack, {})
            return tuple(sorted({int(str(spot).partition(".")[0]) for spot in spots}))
        return tuple(map(int, resolved)) if resolved is not None else selection.positions(layers)
    return ()


def step_text(step: Step) -> str:
    """Say in a few words what a step does: `prune 21-24`, `expand after 3 init copy`."""
    plain = step_to_builtins(msgspec.structs.replace(step, resolved=None))[step.operation.name]
    words = [step.operation.name.replace("_", "-")]
    for name, value in plain.items():
        text = option_text(value)
        words += ([] if name == "layers" else [name]) + [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"]
    return " ".join(words)


def consequences(session: Session, proposal: Proposal) -> list[str]:
    """Return what the step would change, most important first: arithmetic on headers, nothing measured."""
    preview = proposal.preview
    if preview is None:
        return []
    parts = []
    before, after = (sum(map(len, draft.stacks.values())) for draft in (session.draft, preview.draft))
    if before != after:
        parts.append(f"{before}→{after} layers")
    if preview.parameters_change:
        parts.append(f"{count_change(preview.parameters_change)} params")
        parts.append(bytes_change(preview.bytes_change))
    added = adapter_parameters(preview.plan) - adapter_parameters(session.plan)
    if added:
        parts.append(f"{count_change(added)} adapter params")
    if preview.plan.frozen != session.plan.frozen:
        trains = [count_text(trainable_parameters(plan)) for plan in (session.plan, preview.plan)]
        parts += [f"trainable {trains[0]}→{trains[1]}"] if trains[0] != trains[1] else []
    operation = preview.step.operation
    if isinstance(operation, LearningStep):
        trained = trained_parameters(operation, session.draft, session.plan)
        memory = training_bytes(operation, session.draft, session.plan)
        parts += [f"trains {count_text(trained)} numbers", f"takes {bytes_text(memory)} of memory and more"]
    if not parts:
        parts.append("changes nothing" if preview.draft == session.draft else "changes no size")
    return parts


def lost_importance(session: Session, proposal: Proposal, board: Board) -> list[str]:
    """Return the sum of each measured score over the layers that would go; the only figures here that were measured."""
    preview = proposal.preview
    if preview is None or sum(map(len, preview.draft.stacks.values())) >= sum(map(len, session.draft.stacks.values())):
        return []
    layers = session.draft.layers(preview.step.operation.stack)
    keys = [layers[at].key for at in proposal.positions]
    parts = []
    for column in board:
        known = [column.values[key] for key in keys if key in column.values]
        if len(known) == len(keys) and known:
            whole = sum(column.values.get(layer.key, 0.0) for layer in layers)
            notes = [f"{sum(known) / whole:.0%} of all"] if whole > 0 else []
            notes += [f"on {column.data}"] if column.data else []
            notes += ["before the last edit~"] if not session.draft.is_what(column.digest) else []
            parts.append(f"Σ {column.title} {value_text(sum(known), column.scale.decimals)} ({', '.join(notes)})")
    return parts
