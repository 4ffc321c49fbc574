"""Takes adapters off."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.operation import Chosen, MatrixChoice, Operation, matching_roles
from surgeon.core.selection.matrix_selection import roles_by_position
from surgeon.core.selection.selection import Selection
from surgeon.errors import RecipeError


class DropAdapters(Operation, frozen=True, kw_only=True):
    """Take the adapters off chosen matrices: a hard mask. An exported adapter leaves these modules out.

    Matrices without an adapter are passed over, so that a score may choose among all of them; after `learn_masks` the
    score `gate` chooses among the adapters themselves.
    """

    name = "drop_adapters"
    key = "D"
    summary = "take the adapters off chosen matrices (a hard mask)"
    paper = "Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875, stage 3"

    matrices: MatrixChoice = None
    layers: Annotated[Selection | None, msgspec.Meta(description="which layers")] = None
    roles: Annotated[tuple[str, ...], msgspec.Meta(description="with layers: only attention, mlp.down, …")] = ("all",)

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Drop the adapters."""
        wanted = self._wanted(draft, chosen)
        before = draft.layers(self.stack)
        layers = [
            replace(layer, lora={role: lora for role, lora in layer.lora.items() if role not in wanted[at]})
            if at in wanted
            else layer
            for at, layer in enumerate(before)
        ]
        if all(len(new.lora) == len(old.lora) for new, old in zip(layers, before, strict=True)):
            raise RecipeError(
                "none of the chosen matrices has an adapter",
                where="matrices" if self.matrices is not None else "layers",
                hint="leave the step out, or choose others",
            )
        return draft.with_layers(tuple(layers), self.stack)

    def _wanted(self, draft: Draft, chosen: Chosen) -> dict[int, frozenset[str]]:
        if (self.layers is None) == (self.matrices is None):
            raise RecipeError("needs `layers` or `matrices`", allowed="layers: 0-3, or matrices: lowest 25% by gate")
        if self.matrices is None:
            return dict.fromkeys(chosen["layers"], matching_roles(draft, self.roles, self.stack))
        if self.roles != ("all",):
            raise RecipeError("does not go with `matrices`", where="roles", hint="name the roles in `matrices`")
        return roles_by_position(chosen["matrices"])
