"""Inserts layers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from surgeon.core.plan.draft import Draft, Identity, Layer, Source, base_tensors
from surgeon.core.plan.layer_means import mean_of_layers, refuse_adapted, refuse_quantised
from surgeon.core.recipe.operation import Chosen, LayerChoice, Operation
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError, RecipeError


class Expand(Operation, frozen=True, kw_only=True):
    """Insert one new layer after each named one.

    `copy` and `mean` start as exact identities: the tensors that write into the residual stream are silenced, so the
    model's function does not change by a bit until the layer is trained. `duplicate` repeats the layer as it is,
    which does change the function. A `mean` after the last layer has no right neighbour and is a copy.
    """

    name = "expand"
    key = "e"
    summary = "insert layers after the named ones, as identities or as duplicates"
    paper = "LLaMA Pro, arXiv:2401.02415 (copy); Llama SLayer, arXiv:2410.02330 (mean)"

    after: LayerChoice
    init: Annotated[
        Literal["mean", "copy", "duplicate"],
        msgspec.Meta(description="mean of both neighbours or copy, as an identity; or a plain duplicate"),
    ] = "mean"

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Insert the layers."""
        after = set(chosen["after"])
        if not after:
            raise RecipeError("chooses no layer", where="after", hint="leave the step out")
        stack = draft.structure.stack(self.stack)
        before = draft.layers(self.stack)
        layers: list[Layer] = []
        for position, layer in enumerate(before):
            layers.append(layer)
            if position in after:
                right = before[position + 1] if position + 1 < len(before) else layer
                refuse_adapted((layer, right) if self.init == "mean" else (layer,), "the new layer")
                source = self._source(draft.structure, stack, layer, right)
                layers.append(Layer(draft.new_key(layer, self.stack), source, None, layer.settings))
        return draft.with_layers(tuple(layers), self.stack)

    def _source(self, structure: Structure, stack: Stack, layer: Layer, right: Layer) -> Source:
        if self.init == "duplicate":
            return layer.source
        refuse_quantised(structure, "an identity", "init: duplicate, prune, freeze")
        reason = structure.no_identity(base_tensors(layer.source, stack))
        if reason:
            raise ArchitectureError(
                f"cannot be made an identity: {reason}",
                where=f"layer {layer.key}, model_type {structure.model_type}",
                allowed="init: duplicate",
                hint="insert it as a duplicate, or leave it out",
            )
        if self.init == "copy" or right is layer:
            return Identity(layer.source)
        return Identity(mean_of_layers(structure, stack, (layer, right), "init: copy"))
