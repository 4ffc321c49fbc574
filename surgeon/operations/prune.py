"""Removes layers."""

from __future__ import annotations

from surgeon.core.draft import Draft
from surgeon.core.operation import Chosen, LayerChoice, Operation
from surgeon.errors import RecipeError


class Prune(Operation, frozen=True, kw_only=True):
    """Remove any set of layers; the ones that stay keep their order and their per-layer config."""

    name = "prune"
    key = "d"
    summary = "remove layers"
    paper = "ShortGPT, arXiv:2403.03853; The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887"

    layers: LayerChoice

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Drop the chosen layers."""
        layers = draft.layers(self.stack)
        gone = set(chosen["layers"])
        if not gone:
            raise RecipeError("chooses no layer", where="layers", hint="leave the step out")
        if len(gone) == len(layers):
            raise RecipeError(
                f"removes all {len(layers)} layers", where="layers", allowed="at least one layer must stay"
            )
        return draft.with_layers(tuple(layer for at, layer in enumerate(layers) if at not in gone), self.stack)
