"""Switches sublayers off."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import msgspec

from surgeon.core.plan.draft import Draft, Silenced
from surgeon.core.plan.expressions import silent_values
from surgeon.core.plan.layer_means import refuse_adapted, refuse_quantised
from surgeon.core.recipe.operation import Chosen, Operation, SublayerChoice
from surgeon.core.selection.selection import Selection
from surgeon.core.selection.spot_selection import split_spot
from surgeon.errors import RecipeError


class Silence(Operation, frozen=True, kw_only=True):
    """Have the attention or the MLP of chosen layers put out exact zeros, so that the rest of the layer stays as it is.

    Its tensors stay where they are, as many as before: no family of transformers has a config that leaves a sublayer of
    one layer out. What writes into the residual stream is zero.
    """

    name = "silence"
    key = "z"
    summary = "switch the attention or the MLP of layers off"
    paper = "What Matters in Transformers?, arXiv:2406.15786"

    layers: Annotated[Selection | None, msgspec.Meta(description="the sublayer of which layers")] = None
    sublayer: Annotated[Literal["attention", "mlp"] | None, msgspec.Meta(description="which sublayer of them")] = None
    sublayers: SublayerChoice = None

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Silence the chosen sublayers."""
        if (self.layers is None) == (self.sublayers is None) or (self.layers is None) != (self.sublayer is None):
            raise RecipeError(
                "needs `layers` and `sublayer`, or `sublayers`",
                allowed="layers: 3-5 with sublayer: mlp, or sublayers: lowest 4 by shapley",
            )
        if self.sublayer is not None:
            wanted = {at: {str(self.sublayer)} for at in chosen["layers"]}
        else:
            wanted = dict[int, set[str]]()
            for spot in chosen["sublayers"]:
                position, name = split_spot(spot, "sublayer", "3.mlp")
                wanted.setdefault(position, set()).add(name)
        if not wanted:
            raise RecipeError("chooses no layer", where="layers", hint="leave the step out")
        draft.structure.family.parts.require()
        refuse_quantised(draft.structure, "silence", "prune whole layers")
        layers = list(draft.layers(self.stack))
        for position, names in wanted.items():
            layer = layers[position]
            source = Silenced(layer.source, frozenset(names))
            roles = silent_values(draft.structure, draft.structure.stack(self.stack), source)
            refuse_adapted([layer], "the silence", frozenset(roles))
            layers[position] = replace(layer, source=source)
        return draft.with_layers(tuple(layers), self.stack)
