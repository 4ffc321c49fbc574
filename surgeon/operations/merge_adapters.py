"""Folds adapters into the weights."""

from __future__ import annotations

from dataclasses import replace

from surgeon.core.plan.draft import Draft, Layer, Learned
from surgeon.core.recipe.learning_step import ResultStep
from surgeon.errors import RecipeError


class MergeAdapters(ResultStep, frozen=True, kw_only=True):
    """Add every trained adapter, gate and all, to the matrix that it is on, and take it off.

    `W + sigmoid(gate) * (alpha / rank) * B A` in float32, rounded once to the checkpoint's dtype. What is exported is
    an ordinary checkpoint. Adapters that were not trained change nothing, and are only taken off.
    """

    name = "merge_adapters"
    key = "A"
    summary = "add trained adapters to the weights, so that a plain checkpoint comes out"
    paper = "LoRA, arXiv:2106.09685, section 4.1"

    def learned(self, draft: Draft, address: str) -> Draft:
        """Let the weights below trained adapters come from the result."""
        if not any(
            lora.address for layers in draft.stacks.values() for layer in layers for lora in layer.lora.values()
        ):
            raise RecipeError(
                "no adapter was trained" if draft.adapted else "there are no adapters",
                allowed="masked_lora and train before it", hint="leave the step out, or say drop_adapters",
            )  # fmt: skip
        stacks = {name: tuple(_merged(layer, address) for layer in layers) for name, layers in draft.stacks.items()}
        return replace(draft, stacks=stacks)


def _merged(layer: Layer, address: str) -> Layer:
    if not any(lora.address for lora in layer.lora.values()):
        return replace(layer, lora={})
    return replace(layer, source=Learned(layer.source, address, layer.key), lora={})
