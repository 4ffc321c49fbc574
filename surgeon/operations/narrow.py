"""Removes neurons of MLPs, and key-value heads with their query heads."""

from __future__ import annotations

from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.part_counts import without_parts
from surgeon.core.recipe.operation import Chosen, HeadChoice, NeuronChoice, Operation
from surgeon.core.selection.part_selection import numbers_by_position
from surgeon.core.selection.selection import Selection
from surgeon.errors import RecipeError


class Narrow(Operation, frozen=True, kw_only=True):
    """Remove neurons from the middle of MLPs, or key-value heads with the query heads that read them.

    As many in every layer, since the config has one number for all, or as it may be where the config says it per layer.
    A share leaves a multiple of `multiple` neurons, which suits the hardware; numbers are taken as they are.
    """

    name = "narrow"
    key = "n"
    summary = "remove neurons of MLPs, or attention heads"
    paper = "Minitron, arXiv:2407.14679; FLAP, arXiv:2312.11983"

    neurons: NeuronChoice = None
    heads: HeadChoice = None
    multiple: Annotated[int, msgspec.Meta(ge=1, description="a share of the neurons leaves a multiple of so many")] = 64

    def selections(self) -> dict[str, Selection]:
        """Return the selections; that of neurons leaves a multiple."""
        found = super().selections()
        if self.neurons is not None:
            found["neurons"] = self.neurons.leaving_multiples(self.multiple)
        return found

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Drop the chosen neurons and heads."""
        if self.neurons is None and self.heads is None:
            raise RecipeError(
                "needs `neurons`, `heads` or both",
                allowed="neurons: lowest 25% by neuron_activation, heads: lowest 1 by head_activation",
            )
        if self.neurons is not None:
            draft = without_parts(draft, "neurons", numbers_by_position(chosen["neurons"]), self.stack)
        if self.heads is not None:
            draft = without_parts(draft, "heads", numbers_by_position(chosen["heads"]), self.stack)
        return draft
