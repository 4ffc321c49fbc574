"""Puts the layers into another order."""

from __future__ import annotations

from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.operation import Chosen, Operation
from surgeon.errors import RecipeError


class Reorder(Operation, frozen=True, kw_only=True):
    """Put the layers into another order; each takes its per-layer config with it.

    `order` names every position of the model at this step once: `[0, 2, 1, 3]` swaps the two in the middle.
    """

    name = "reorder"
    key = "o"
    summary = "put the layers into another order"
    paper = "Transformer Layers as Painters, arXiv:2407.09298"

    order: Annotated[tuple[int, ...], msgspec.Meta(description="every position once, in the new order")]

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Rearrange the layers."""
        del chosen
        layers = draft.layers(self.stack)
        if sorted(self.order) != list(range(len(layers))):
            raise RecipeError(
                f"{list(self.order)} is not an order of {len(layers)} layers",
                where="order",
                allowed=f"each of 0-{len(layers) - 1} once",
                hint="prune removes layers, expand with init: duplicate repeats them",
            )
        return draft.with_layers(tuple(layers[position] for position in self.order), self.stack)
