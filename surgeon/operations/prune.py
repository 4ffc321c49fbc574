"""Removes layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft, Layer
from surgeon.core.plan.layer_means import mean_of_layers, refuse_adapted, refuse_quantised
from surgeon.core.recipe.operation import Chosen, LayerChoice, Operation
from surgeon.errors import RecipeError


class Prune(Operation, frozen=True, kw_only=True):
    """Remove any set of layers; the ones that stay keep their order and their per-layer config.

    With `fold`, every run of adjacent layers that goes is folded into the layer that stays directly in front of it,
    which becomes the uniform mean of itself and them. That changes the function, and is meant to be trained.
    """

    name = "prune"
    key = "d"
    summary = "remove layers"
    paper = "ShortGPT, arXiv:2403.03853; The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887"

    layers: LayerChoice
    fold: Annotated[bool, msgspec.Meta(description="average what goes into the layer in front of it")] = False

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
        if not self.fold:
            return draft.with_layers(tuple(layer for at, layer in enumerate(layers) if at not in gone), self.stack)
        refuse_quantised(draft.structure, "folding", "prune without fold")
        return draft.with_layers(tuple(_folded(layers, gone, draft, self.stack)), self.stack)


def _folded(layers: Sequence[Layer], gone: set[int], draft: Draft, name: str | None) -> Iterator[Layer]:
    structure, stack = draft.structure, draft.structure.stack(name)
    if 0 in gone:
        raise RecipeError(
            "layer 0 has no layer in front of it to be folded into", where="layers",
            allowed="runs of adjacent layers behind one that stays", hint="let it stay, or leave fold out",
        )  # fmt: skip
    for at, layer in enumerate(layers):
        if at in gone:
            continue
        end = next((other for other in range(at + 1, len(layers)) if other not in gone), len(layers))
        run = layers[at:end]
        if len(run) > 1:
            refuse_adapted(run, "the mean")
            layer = replace(layer, source=mean_of_layers(structure, stack, run, "prune without fold"))  # noqa: PLW2901
        yield layer
