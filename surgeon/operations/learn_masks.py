"""Learns how much of each adapter's update is needed."""

from __future__ import annotations

from typing import Annotated

import msgspec

from surgeon.core.interchange.adapter_targets import OPEN_GATE
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.learning_step import LearningStep, Positive, Schedule, Share, with_learned_adapters
from surgeon.core.recipe.objective import ObjectiveChoice, parse_objective
from surgeon.errors import RecipeError

STEPS = 128


class LearnMasks(LearningStep, frozen=True, kw_only=True):
    """Train the gates of the adapters alone: one number `s` for each LoRA matrix; weights, A and B stay as they are.

    `y = W x + sigmoid(s) * (alpha / rank) * B A x`, the same loss as the adapters were trained with, and no penalty.
    What counts is the order of the `s`: after a short run every gate is still nearly open. AdamW.
    """

    name = "learn_masks"
    key = "M"
    summary = "train the gates of trained adapters alone: which LoRA matrices matter"
    paper = "Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875, stage 2"
    learning_rates = (1e-2, 1e-2)

    objective: Annotated[
        ObjectiveChoice | None, msgspec.Meta(description="what is minimised; default sft: answers alone")
    ] = None
    init: Annotated[
        float | None, msgspec.Meta(description="start value of every gate before the sigmoid; default: as they are")
    ] = None
    steps: Annotated[Positive | None, msgspec.Meta(description=f"optimiser steps; default {STEPS}")] = None
    learning_rate: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None, msgspec.Meta(description="of the gates; default 1e-2")
    ] = None
    scheduler: Annotated[Schedule, msgspec.Meta(description="how the learning rate falls")] = "constant"
    warmup_ratio: Annotated[Share, msgspec.Meta(description="share of the steps in which it rises")] = 0.0

    @property
    def minimised(self) -> ObjectiveChoice:
        """The objective."""
        return self.objective or parse_objective("sft")

    def learned(self, draft: Draft, address: str) -> Draft:
        """Let the adapters, gates included, come from the result."""
        if not draft.adapted:
            raise RecipeError("there are no adapters", hint="attach masked_lora and train before")
        layers = [layer for stack in draft.stacks.values() for layer in stack]
        if not any(lora.address for layer in layers for lora in layer.lora.values()):
            raise RecipeError(
                "the adapters are as they were attached: B is zero, and there is nothing to mask",
                hint="add a train step before",
            )
        if self.init is None and any(lora.gate == OPEN_GATE for layer in layers for lora in layer.lora.values()):
            raise RecipeError(
                "gates are open so wide that none would move: adapters from elsewhere have none of their own",
                where="init", allowed="a start value such as 4, for all of them", hint="say init: 4",
            )  # fmt: skip
        return with_learned_adapters(draft, address)
