"""Gives the model an output head of its own."""

from __future__ import annotations

from dataclasses import replace

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.tied_head import FIELD, tied_names
from surgeon.core.recipe.operation import Chosen, Operation
from surgeon.errors import RecipeError


class Untie(Operation, frozen=True, kw_only=True):
    """Copy the embedding that the output head is tied to into a head of its own, and say so in the config.

    The function does not change by a bit. Afterwards the head can be trained, and the embedding frozen, without the
    other. The checkpoint grows by the size of the embedding.
    """

    name = "untie"
    key = "U"
    summary = "give the output head weights of its own, a copy of the embedding"
    paper = "what healing by the head asks for: Reassessing Layer Pruning in LLMs, arXiv:2411.15558"

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Untie the head."""
        del chosen
        if draft.untied is not None:
            raise RecipeError("the head is untied already", where=FIELD, hint="leave the step out")
        tied_names(draft.structure)
        if draft.structure.quantisation is not None:
            raise draft.structure.quantisation.refusal("nothing says how a head of its own would be stored")
        return replace(draft, untied=draft.learned)
