"""Attaches low-rank adapters with a learnable gate on each."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft, Lora
from surgeon.core.plan.plan import adaptable_roles
from surgeon.core.recipe.operation import Chosen, MatrixChoice, Operation, matching_roles
from surgeon.core.selection.matrix_selection import roles_by_position
from surgeon.core.selection.selection import Selection
from surgeon.errors import ArchitectureError, RecipeError, SelectionError

_LINEAR = ("attention", "mlp", "mixer")


class MaskedLora(Operation, frozen=True, kw_only=True):
    """Attach a PEFT LoRA to chosen layers and roles, with one gate per LoRA matrix.

    `y = W x + sigmoid(gate) * (alpha / rank) * B A x`. B starts at zero, so the model's function does not change. On
    export the gates are folded into B, and the result is an ordinary PEFT adapter.
    """

    name = "masked_lora"
    key = "a"
    summary = "attach LoRA adapters with a gate on each matrix"
    needs_model = True
    paper = "Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875; LoRA, arXiv:2106.09685"

    layers: Annotated[Selection | None, msgspec.Meta(description="which layers")] = None
    matrices: MatrixChoice = None
    roles: Annotated[tuple[str, ...], msgspec.Meta(description="which matrices: attention, mlp.down, …")] = ()
    rank: Annotated[int, msgspec.Meta(ge=1, description="rank of each adapter")] = 8
    alpha: Annotated[float, msgspec.Meta(gt=0, description="scale; the update is multiplied by alpha / rank")] = 16.0
    gate: Annotated[float, msgspec.Meta(description="start value of each gate before the sigmoid")] = 4.0

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Attach the adapters."""
        wanted = self._wanted(draft, chosen)
        lora = Lora(self.rank, self.alpha, self.gate)
        layers = []
        for position, layer in enumerate(draft.layers(self.stack)):
            here = wanted.get(position, frozenset()) & adaptable_roles(draft, layer, self.stack)
            if here & layer.lora.keys():
                raise RecipeError(
                    f"layer {position} already has an adapter on {', '.join(sorted(here & layer.lora.keys()))}",
                    where="layers",
                    allowed="one adapter per matrix",
                    hint="choose other layers or roles",
                )
            layers.append(replace(layer, lora={**layer.lora, **dict.fromkeys(sorted(here), lora)}) if here else layer)
        if all(new is old for new, old in zip(layers, draft.layers(self.stack), strict=True)):
            # With no adapter attached, a train step would train the weights themselves.
            raise RecipeError(
                "no matrix that an adapter fits is among what is chosen",
                where="layers" if self.layers is not None else "matrices",
                allowed=", ".join(sorted(self._adaptable(draft))),
                hint="choose other layers or roles",
            )
        return draft.with_layers(tuple(layers), self.stack)

    def _adaptable(self, draft: Draft) -> frozenset[str]:
        """Return the roles that an adapter fits in some layer."""
        return frozenset().union(*(adaptable_roles(draft, one, self.stack) for one in draft.layers(self.stack)))

    def _wanted(self, draft: Draft, chosen: Chosen) -> dict[int, frozenset[str]]:
        """Return the roles to adapt, by position."""
        if (self.layers is None) == (self.matrices is None):
            raise RecipeError("needs `layers` or `matrices`", allowed="layers: 0-3, or matrices: highest 30% by taylor")
        if self.matrices is not None and self.roles:
            raise RecipeError("does not go with `matrices`", where="roles", hint="name the roles in `matrices`")
        if self.matrices is not None:
            wanted = roles_by_position(chosen["matrices"])
        else:
            wanted = dict.fromkeys(chosen["layers"], self._roles(draft))
        if not wanted:
            raise RecipeError(
                "chooses nothing", where="layers" if self.layers else "matrices", hint="leave the step out"
            )
        if any(role.startswith("experts.") for roles in wanted.values() for role in roles):
            raise ArchitectureError(
                "experts are stacked in one tensor once they are loaded, and have no matrix of their own to adapt",
                where="roles",
                allowed="attention, mlp and the other roles",
                hint="leave experts out",
            )
        for role in self.roles:
            if not matching_roles(draft, (role,), self.stack) & self._adaptable(draft):
                raise RecipeError(
                    f"{role} is no matrix: an adapter does not fit it", where="roles",
                    allowed=", ".join(sorted(self._adaptable(draft))), hint="leave it out",
                )  # fmt: skip
        return wanted

    def _roles(self, draft: Draft) -> frozenset[str]:
        if self.roles:
            return matching_roles(draft, self.roles, self.stack)
        present = {role.partition(".")[0] for role in draft.structure.roles}
        fits = tuple(kind for kind in _LINEAR if kind in present)
        if not fits:
            raise SelectionError("this model has no matrices of a known role", where="roles")
        return matching_roles(draft, fits, self.stack)
