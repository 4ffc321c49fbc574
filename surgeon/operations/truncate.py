"""Removes singular directions from matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft, Truncated, Truncation
from surgeon.core.plan.layer_means import refuse_adapted, refuse_quantised
from surgeon.core.recipe.operation import Chosen, LayerChoice, Operation
from surgeon.core.structure.structure import OTHER
from surgeon.errors import RecipeError, SelectionError


class Truncate(Operation, frozen=True, kw_only=True):
    """Set some singular values of the matrices of chosen roles to zero; shapes and the other values stay.

    Either `deciles`, tenths of the singular values counted from 1, the largest, to 10, the smallest, or `rank`, the
    number of largest ones that stay. Computed in float64 and rounded once.
    """

    name = "truncate"
    key = "t"
    summary = "zero chosen deciles of singular values, or keep a rank"
    paper = "LASER, arXiv:2312.13558 (rank); Small Singular Values Matter, arXiv:2410.17770, section 5 (deciles)"

    layers: LayerChoice
    roles: Annotated[tuple[str, ...], msgspec.Meta(description="which matrices: mlp.up, attention, …")]
    deciles: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1, le=10)], ...],
        msgspec.Meta(description="tenths to zero: 1 the largest, 10 the smallest"),
    ] = ()
    rank: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="how many of the largest stay")
    ] = None

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Truncate the chosen layers."""
        if bool(self.deciles) == (self.rank is not None):
            raise RecipeError("needs `deciles` or `rank`, and not both", allowed="deciles: [10], or rank: 64")
        wanted = set(chosen["layers"])
        if not wanted:
            raise RecipeError("chooses no layer", where="layers", hint="leave the step out")
        refuse_quantised(draft.structure, "truncation")
        how = Truncation(tuple(sorted(set(self.deciles))), self.rank)
        roles, before = self._roles(draft), draft.layers(self.stack)
        fused = draft.structure.family.fused
        meant = {role for role in draft.structure.roles if {role, *fused.get(role, ())} & roles}
        refuse_adapted((before[at] for at in sorted(wanted)), "the truncation", meant)
        layers = [
            replace(layer, source=Truncated(layer.source, roles, how)) if position in wanted else layer
            for position, layer in enumerate(before)
        ]
        return draft.with_layers(tuple(layers), self.stack)

    def _roles(self, draft: Draft) -> frozenset[str]:
        """Return the roles meant: those of stored matrices and of the parts of fused ones."""
        fused = draft.structure.family.fused
        stored = [role for role in draft.structure.roles if role != OTHER]
        known = [part for role in stored for part in (role, *fused.get(role, ()))]
        found: set[str] = set()
        for pattern in self.roles:
            fits = {role for role in known if pattern in ("all", role, role.partition(".")[0])}
            if not fits:
                raise SelectionError(
                    f"no matrix in a layer has role {pattern!r}", where="roles", allowed=", ".join(known) + ", all"
                )
            found |= fits
        return frozenset(found)
