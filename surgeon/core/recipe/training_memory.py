"""How much a learning step trains, and what it takes in memory: arithmetic on a plan, nothing loaded."""

from __future__ import annotations

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_moves import blocks_of
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
    if is_blockwise(step):
        return sum(_healed_parameters(draft, plan))
    if plan.adapters:
        return sum(sum(adapter.shape) * adapter.lora.rank for adapter in free)
    return plan.trainable_parameters


def training_bytes(step: LearningStep, draft: Draft, plan: Plan) -> int:
    """Return the least memory a step takes: weights, a teacher's too, gradients and moments; activations come on top.

    Of a reference log-probabilities are kept, and no weights.
    """
    if is_blockwise(step):
        return _blockwise_bytes(draft, plan)
    adapters = sum(sum(adapter.shape) * adapter.lora.rank for adapter in plan.adapters)
    choice = getattr(step, "minimised", None) or getattr(step, "objective", None)
    taught = choice is not None and choice.objective.teacher
    teacher = draft.structure.checkpoint.parameters if taught else 0
    return _WEIGHT * (plan.parameters + adapters + teacher) + _TRAINED * trained_parameters(step, draft, plan)


def is_blockwise(step: LearningStep) -> bool:
    """Whether a step trains one changed layer after the other."""
    choice = getattr(step, "objective", None)
    return choice is not None and choice.objective.blockwise


def _blockwise_bytes(draft: Draft, plan: Plan) -> int:
    """Return the least that blockwise healing takes: what is outside the layers, one of each model, one in training."""
    outside = sum(tensor.parameters for tensor in plan.outside)
    largest = max(layer.parameters for layer in plan.layers.values())
    return _WEIGHT * (outside + 2 * largest) + _TRAINED * max(_healed_parameters(draft, plan), default=0)


def _healed_parameters(draft: Draft, plan: Plan) -> list[int]:
    """Return how many numbers are trained of each changed layer."""
    found, stack = [], draft.structure.stack()
    for block in blocks_of(draft):
        layer = plan.layers[stack.tensor_name(block.position, "")[:-1]]
        types = layer.layout.types.items()
        frozen = (one.parameters for suffix, one in types if stack.tensor_name(block.position, suffix) in plan.frozen)
        found += [layer.parameters - sum(frozen)] if block.changed else []
    return found
