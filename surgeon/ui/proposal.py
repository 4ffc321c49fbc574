"""One operation before it is applied: its options, the layers it is about, and what it would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from surgeon.core.operation import operations
from surgeon.core.recipe import Step, step_to_builtins
from surgeon.core.selection import Selection, spans
from surgeon.errors import SurgeonError
from surgeon.session import Preview, Session, option_text
from surgeon.ui.board import Board
from surgeon.ui.figures import bytes_change, count_change, count_text, value_text
from surgeon.ui.rows import adapter_parameters, trainable_parameters


@dataclass(frozen=True)
class Proposal:
    """What would be done. Exactly one of `preview` and `error` is set; `positions` are the chosen layers, if known."""

    operation: str
    fields: Mapping[str, Any]
    positions: tuple[int, ...] = ()
    preview: Preview | None = None
    error: SurgeonError | None = None
    marks_before: frozenset[str] = field(default_factory=frozenset)

    def with_positions(self, session: Session, positions: tuple[int, ...]) -> Proposal:
        """Return the same operation on other layers."""
        others = selection_fields(self.operation)
        fields = {name: value for name, value in self.fields.items() if name not in others}
        fields[others[0]] = spans(positions) if positions else []
        judged = propose(session, self.operation, fields, self.marks_before)
        return judged if judged.preview else replace(judged, positions=positions)


def selection_fields(operation: str) -> list[str]:
    """Return the fields of an operation that choose layers, the main one first."""
    kind = operations()[operation]
    return [field.encode_name for field in msgspec.structs.fields(kind) if mentions_selection(field.type)]


def mentions_selection(kind: Any) -> bool:
    """Whether a field's type is a selection, perhaps annotated or optional."""
    return kind is Selection or any(map(mentions_selection, getattr(kind, "__args__", ())))


def propose(session: Session, operation: str, fields: Mapping[str, Any], marks: frozenset[str] = frozenset()) -> Proposal:
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
        if step.resolved and name in step.resolved:
            return step.resolved[name]
        return selection.positions(layers)
    return ()


def step_text(step: Step) -> str:
    """Say in a few words what a step does: `prune 21-24`, `expand after 3 init copy`."""
    plain = step_to_builtins(msgspec.structs.replace(step, resolved=None))[step.operation.name]
    words = [step.operation.name.replace("_", "-")]
    for name, value in plain.items():
        words += ([] if name == "layers" else [name]) + [option_text(value)]
    return " ".join(words)


def consequences(session: Session, proposal: Proposal, board: Board) -> list[str]:
    """Return what the step would change, most important first. Nothing here is measured but what says so."""
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
        parts.append(f"trainable {trains[0]}→{trains[1]}")
    if preview.draft.digest == session.draft.digest and not parts:
        parts.append("changes nothing")
    if after < before:
        parts += _lost_importance(session, proposal, board)
    return parts


def _lost_importance(session: Session, proposal: Proposal, board: Board) -> list[str]:
    layers = session.draft.layers(proposal.preview.step.operation.stack if proposal.preview else None)
    keys = [layers[at].key for at in proposal.positions]
    parts = []
    for column in board:
        known = [column.values[key] for key in keys if key in column.values]
        if len(known) == len(keys) and known:
            whole = sum(column.values.get(layer.key, 0.0) for layer in layers)
            stale = " before the last edit" if column.digest != session.draft.digest else ""
            share = f" ({sum(known) / whole:.0%} of all)" if whole > 0 else ""
            parts.append(f"Σ {column.title} {value_text(sum(known), column.scale.decimals)}{share} measured{stale}")
    return parts
