"""How much a learning step trains, and what it takes in memory: arithmetic on a plan, nothing loaded."""

from __future__ import annotations

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan
from surgeon.core.recipe.learning_step import LearningStep, is_free

_GATES_ALONE = ("learn_masks",)
_WEIGHT, _TRAINED = 4, 12
"""Bytes: weights are float32; what is trained has a gradient and AdamW's two moments besides."""


def trained_parameters(step: LearningStep, draft: Draft, plan: Plan) -> int:
    """Return how many numbers a step trains on a draft: gates, adapters, or weights that are not frozen."""
    free = [adapter for adapter in plan.adapters if is_free(draft, adapter)]
    if step.name in _GATES_ALONE:
        return len(free)
    if plan.adapters:
        return sum(sum(adapter.shape) * adapter.lora.rank for adapter in free)
    return plan.trainable_parameters


def training_bytes(step: LearningStep, draft: Draft, plan: Plan) -> int:
    """Return the least memory a step takes: weights, a teacher's too, gradients and moments; activations come on top.

    Of a reference log-probabilities are kept, and no weights.
    """
    adapters = sum(sum(adapter.shape) * adapter.lora.rank for adapter in plan.adapters)
    choice = getattr(step, "minimised", None) or getattr(step, "objective", None)
    taught = choice is not None and choice.objective.teacher
    teacher = draft.structure.checkpoint.parameters if taught else 0
    return _WEIGHT * (plan.parameters + adapters + teacher) + _TRAINED * trained_parameters(step, draft, plan)
