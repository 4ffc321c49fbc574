"""What a step does, in words: its short title, its effects on sizes, and the measured scores it removes."""

from __future__ import annotations

import msgspec

from surgeon.core.recipe.command_text import option_text
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.recipe import Step, step_to_builtins
from surgeon.core.recipe.training_memory import trained_parameters, training_bytes
from surgeon.session import Session
from surgeon.ui.state.formatting import bytes_change, bytes_text, count_change, count_text, value_text
from surgeon.ui.state.parameter_counts import adapter_parameters, trainable_parameters
from surgeon.ui.state.pending_step import PendingStep
from surgeon.ui.state.score_columns import ScoreColumns

_MAX_VALUE_CELLS = 32


def step_title(step: Step) -> str:
    """Describe a step in a few words: `prune 21-24`, `expand after 3 init copy`."""
    plain = step_to_builtins(msgspec.structs.replace(step, resolved=None))[step.operation.name]
    words = [step.operation.name.replace("_", "-")]
    for name, value in plain.items():
        text = option_text(value)
        words += [] if name == "layers" else [name]
        words.append(text if len(text) <= _MAX_VALUE_CELLS else f"{text[:_MAX_VALUE_CELLS]}…")
    return " ".join(words)


def step_effects(session: Session, pending: PendingStep) -> list[str]:
    """Return what the step would change, most important first: computed from headers, nothing is measured."""
    preview = pending.preview
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
    if preview.plan.frozen != session.plan.frozen or added:
        pairs = ((session.draft, session.plan), (preview.draft, preview.plan))
        trainable = [count_text(trainable_parameters(draft, plan)) for draft, plan in pairs]
        parts += [f"trainable {trainable[0]}→{trainable[1]}"] if trainable[0] != trainable[1] else []
    operation = preview.step.operation
    if isinstance(operation, LearningStep):
        trained = trained_parameters(operation, session.draft, session.plan)
        memory = training_bytes(operation, session.draft, session.plan)
        parts += [f"trains {count_text(trained)} numbers", f"takes {bytes_text(memory)} of memory and more"]
    if not parts:
        parts.append("changes nothing" if preview.draft == session.draft else "changes no size")
    return parts


def removed_scores(session: Session, pending: PendingStep, columns: ScoreColumns) -> list[str]:
    """Return the sum of each measured score over the layers that the step would remove."""
    preview = pending.preview
    if preview is None or sum(map(len, preview.draft.stacks.values())) >= sum(map(len, session.draft.stacks.values())):
        return []
    layers = session.draft.layers(preview.step.operation.stack)
    keys = [layers[position].key for position in pending.positions]
    parts = []
    for column in columns:
        values = [column.values[key] for key in keys if key in column.values]
        if len(values) == len(keys) and values:
            whole = sum(column.values.get(layer.key, 0.0) for layer in layers)
            notes = [f"{sum(values) / whole:.0%} of all"] if whole > 0 else []
            notes += [f"on {column.data}"] if column.data else []
            current = session.draft.is_what(column.digest, weights_only=column.weights_only)
            notes += ["before the last edit~"] if not current else []
            notes += ["weights only"] if column.weights_only else []
            parts.append(f"Σ {column.title} {value_text(sum(values), column.scale.decimals)} ({', '.join(notes)})")
    return parts
