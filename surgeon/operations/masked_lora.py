"""Attaches low-rank adapters with a learnable gate on each."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from surgeon.core.draft import Draft, Lora
from surgeon.core.operation import Chosen, LayerChoice, Operation, matching_roles
from surgeon.core.plan import layer_roles
from surgeon.errors import ArchitectureError, RecipeError, SelectionError

_LINEAR = ("attention", "mlp")


class MaskedLora(Operation, frozen=True, kw_only=True):
    """Attach a PEFT LoRA to chosen layers and roles, with one gate per LoRA matrix.

    `y = W x + sigmoid(gate) * (alpha / rank) * B A x`. B starts at zero, so the model's function does not change. On
    export the gates are folded into B, and the result is an ordinary PEFT adapter.
    """

    name = "masked_lora"
    key = "a"
    summary = "attach LoRA adapters with a gate on each matrix"
    paper = "Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875; LoRA, arXiv:2106.09685"

    layers: LayerChoice
    roles: Annotated[tuple[str, ...], msgspec.Meta(description="which matrices: attention, mlp.down, …")] = ()
    rank: Annotated[int, msgspec.Meta(ge=1, description="rank of each adapter")] = 8
    alpha: Annotated[float, msgspec.Meta(gt=0, description="scale; the update is multiplied by alpha / rank")] = 16.0
    gate: Annotated[float, msgspec.Meta(description="start value of each gate before the sigmoid")] = 4.0

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Attach the adapters."""
        wanted = set(chosen["layers"])
        if not wanted:
            raise RecipeError("chooses no layer", where="layers", hint="leave the step out")
        roles = self._roles(draft)
        lora = Lora(self.rank, self.alpha, self.gate)
        layers = []
        for position, layer in enumerate(draft.layers(self.stack)):
            here = roles & layer_roles(draft, layer, self.stack) if position in wanted else frozenset()
            if here & layer.lora.keys():
                raise RecipeError(
                    f"layer {position} already has an adapter on {', '.join(sorted(here & layer.lora.keys()))}",
                    where="layers",
                    allowed="one adapter per matrix",
                    hint="choose other layers or roles",
                )
            layers.append(replace(layer, lora={**layer.lora, **dict.fromkeys(sorted(here), lora)}) if here else layer)
        return draft.with_layers(tuple(layers), self.stack)

    def _roles(self, draft: Draft) -> frozenset[str]:
        if self.roles:
            roles = matching_roles(draft, self.roles, self.stack)
            if any(role.startswith("experts.") for role in roles):
                raise ArchitectureError(
                    "experts are stacked in one tensor once they are loaded, and have no matrix of their own to adapt",
                    where="roles",
                    allowed="attention, mlp and the other roles",
                    hint="leave experts out",
                )
            return roles
        present = {role.partition(".")[0] for role in draft.structure.roles}
        fits = tuple(kind for kind in _LINEAR if kind in present)
        if not fits:
            raise SelectionError("this model has no matrices of a known role", where="roles")
        return matching_roles(draft, fits, self.stack)
