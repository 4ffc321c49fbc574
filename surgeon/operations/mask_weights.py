"""Chooses the single weights that later training may change, by how far a trial run moves them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import msgspec

from surgeon.core.plan.draft import OUTSIDE, Draft
from surgeon.core.plan.plan import has_own_head, layer_roles
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.objective import ObjectiveChoice, parse_objective
from surgeon.errors import RecipeError


class MaskWeights(LearningStep, frozen=True, kw_only=True):
    """Train a throw-away copy, and let later training change only the weights that moved furthest in it.

    A weight's importance is |theta' - theta| after the trial run, theta' in float32; the given share of all weights
    that are not frozen is kept, over all tensors at once, exact to the weight, ties by position. The model itself does
    not change. Layers that are inserted afterwards lie outside the mask.
    """

    name = "mask_weights"
    key = "W"
    summary = "let later training change only the weights that a trial run moves most"
    paper = "Not Everything is All You Need (ALLO), arXiv:2406.12606, stage 0"

    objective: Annotated[
        ObjectiveChoice | None, msgspec.Meta(description="what the trial run minimises; default dpo")
    ] = None
    keep: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=1)], msgspec.Meta(description="share of the weights to keep: 0.1")
    ] = 0.1
    order: Annotated[
        Literal["highest", "lowest", "random"],
        msgspec.Meta(description="which to keep; lowest and random, untrained, are what highest is compared with"),
    ] = "highest"
    exclude: Annotated[
        tuple[Literal["embedding", "head", "norm"], ...],
        msgspec.Meta(
            description="never keep weights of these: embedding (and a head tied to it), head, norm (the last)"
        ),
    ] = ()

    @property
    def minimised(self) -> ObjectiveChoice:
        """The objective."""
        return self.objective or parse_objective("dpo")

    def learned(self, draft: Draft, address: str) -> Draft:
        """Name the mask; the weights stay as they are."""
        if draft.adapted:
            raise RecipeError(
                "adapters are attached, and a weight mask says nothing of them", allowed="a mask, or masked_lora",
                hint="leave out one of the two",
            )  # fmt: skip
        self._refuse_tied_head(draft)
        inside = any(
            layer_roles(draft, layer, stack) - layer.frozen
            for stack, layers in draft.stacks.items()
            for layer in layers
        )
        if not inside and draft.frozen | set(self.exclude) >= set(OUTSIDE):
            raise RecipeError(
                "everything is frozen or excluded",
                allowed=f"layers, or {', '.join(OUTSIDE)}",
                hint="freeze less before",
            )
        return replace(draft, mask=address)

    def _refuse_tied_head(self, draft: Draft) -> None:
        asked = "head" in self.exclude and "embedding" not in self.exclude
        if asked and not has_own_head(draft):
            raise RecipeError(
                "there is no output head of its own to exclude: it is tied to the embedding", where="exclude",
                allowed="embedding, which is both", hint="exclude the embedding, or untie the head before",
            )  # fmt: skip
