"""Attaches low-rank adapters with a learnable gate on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from surgeon.core.plan.draft import Draft, Lora
from surgeon.core.plan.plan import adaptable_roles
from surgeon.core.recipe.operation import Chosen, MatrixChoice, Operation, matching_roles
from surgeon.core.scoring.requests import request_text
from surgeon.core.scoring.score import Score
from surgeon.core.selection.matrix_selection import roles_by_position
from surgeon.core.selection.rank_selection import RankSelection, ranks_by_spot
from surgeon.core.selection.selection import Ranked, Selection
from surgeon.errors import ArchitectureError, RecipeError, SelectionError, UsageError

_LINEAR = ("attention", "mlp", "mixer")


class RankByScore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Ranks in proportion to the importance of the matrices, or of their layers where the score is of layers alone."""

    by: Annotated[str | dict[str, Any], msgspec.Meta(description="a score; the higher, the higher the rank")]
    mean: Annotated[int, msgspec.Meta(ge=1, description="mean of all ranks")] = 8
    least: Annotated[int, msgspec.Meta(ge=1, description="no rank is lower")] = 1
    data: Annotated[
        str | None, msgspec.Meta(description="a name from the recipe's data, or a file; none: built-in text")
    ] = None


class MaskedLora(Operation, frozen=True, kw_only=True):
    """Attach a PEFT LoRA to chosen layers and roles, with one gate per LoRA matrix.

    `y = W x + sigmoid(gate) * (alpha / rank) * B A x`. B starts at zero, so the model's function does not change. On
    export the gates are folded into B, and the result is an ordinary PEFT adapter.

    `rank: {by: taylor, mean: 16, least: 2}` gives important matrices a higher rank, with as many numbers for each row
    and column in all as a rank of 16 everywhere (PEFT's `rank_pattern`). `alpha` is for the mean rank: alpha / rank is
    the same for every adapter.
    """

    name = "masked_lora"
    key = "a"
    summary = "attach LoRA adapters with a gate on each matrix"
    needs_model = True
    paper = "Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875; LoRA, arXiv:2106.09685"

    resolved_fields = ("rank",)

    layers: Annotated[Selection | None, msgspec.Meta(description="which layers")] = None
    matrices: MatrixChoice = None
    roles: Annotated[tuple[str, ...], msgspec.Meta(description="which matrices: attention, mlp.down, …")] = ()
    rank: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | RankByScore,
        msgspec.Meta(description="rank of each adapter; or {by: SCORE, mean: 16, least: 2}"),
    ] = 8
    alpha: Annotated[float, msgspec.Meta(gt=0, description="scale; the update is multiplied by alpha / rank")] = 16.0
    gate: Annotated[float, msgspec.Meta(description="start value of each gate before the sigmoid")] = 4.0

    def selections(self) -> dict[str, Selection]:
        """Return which matrices, and which ranks where a score says them.

        Raises:
            RecipeError: the least rank is more than the mean.
        """
        found = super().selections()
        if isinstance(self.rank, int):
            return found
        if self.rank.least > self.rank.mean:
            raise RecipeError("is more than the mean", where="rank.least", allowed=f"1-{self.rank.mean}")
        try:
            by = request_text(self.rank.by, "rank.by")
        except UsageError as error:
            raise RecipeError(error.what, where=error.where, allowed=error.allowed, hint=error.hint) from error
        ranks = RankSelection(by, self.rank.data, self.rank.mean, self.rank.least, self._adapted)
        return {**found, "rank": ranks}

    def _adapted(self, draft: Draft, scores: Mapping[Ranked, Score]) -> dict[int, frozenset[str]]:
        """Return the roles that get an adapter, by position."""
        layers = draft.layers(self.stack)
        chosen: dict[str, tuple[Any, ...]] = {}
        if self.layers is not None:
            chosen["layers"] = self.layers.positions(layers, scores)
        if self.matrices is not None:
            chosen["matrices"] = self.matrices.spots(draft, self.stack, scores)
        wanted = self._wanted(draft, chosen)
        return {at: roles & adaptable_roles(draft, layers[at], self.stack) for at, roles in wanted.items()}

    def _lora(self, position: int, role: str, ranks: Mapping[tuple[int, str], int]) -> Lora:
        if isinstance(self.rank, int):
            return Lora(self.rank, self.alpha, self.gate)
        if (position, role) not in ranks:
            raise RecipeError(f"has no rank for {position}.{role}", where="rank", hint="take `resolved` out")
        rank = ranks[position, role]
        return Lora(rank, self.alpha * rank / self.rank.mean, self.gate)

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Attach the adapters."""
        wanted = self._wanted(draft, chosen)
        ranks = ranks_by_spot(chosen.get("rank", ()))
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
            loras = {role: self._lora(position, role, ranks) for role in sorted(here)}
            layers.append(replace(layer, lora={**layer.lora, **loras}) if here else layer)
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
