"""Repeats runs of layers."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft, Layer
from surgeon.core.plan.layer_means import refuse_adapted
from surgeon.core.recipe.operation import Chosen, LayerChoice, Operation
from surgeon.errors import RecipeError


class Duplicate(Operation, frozen=True, kw_only=True):
    """Run each run of adjacent chosen layers again, behind its last: 5-7 become 5, 6, 7, 5, 6, 7.

    That changes the function; what it does to the loss is what the score `block_repeat` measures for every run, and
    `run lowest by block_repeat` is the run that does best. `expand` with `init: duplicate` repeats single layers.
    """

    name = "duplicate"
    key = "b"
    summary = "repeat runs of adjacent layers as they are"
    paper = "depth up-scaling: SOLAR 10.7B, arXiv:2312.15166"

    layers: LayerChoice
    times: Annotated[int, msgspec.Meta(ge=1, description="how often each run is there again")] = 1

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Insert the copies."""
        again = set(chosen["layers"])
        if not again:
            raise RecipeError("chooses no layer", where="layers", hint="leave the step out")
        before = draft.layers(self.stack)
        taken = {layer.key for layer in before}
        layers: list[Layer] = []
        run: list[Layer] = []
        for position, layer in enumerate(before):
            layers.append(layer)
            if position in again:
                run.append(layer)
            if run and position + 1 not in again:
                refuse_adapted(run, "the copy")
                for _ in range(self.times):
                    for one in run:
                        key = next(name for number in count(1) if (name := f"{one.key}+{number}") not in taken)
                        taken.add(key)
                        layers.append(replace(one, key=key, original=None, frozen=frozenset()))
                run = []
        return draft.with_layers(tuple(layers), self.stack)
