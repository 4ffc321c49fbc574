"""Marks what later training leaves as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import msgspec

from surgeon.core.plan.draft import OUTSIDE, Draft
from surgeon.core.plan.plan import has_own_head, layer_roles
from surgeon.core.recipe.operation import Chosen, MatrixChoice, Operation, matching_roles
from surgeon.core.selection.matrix_selection import roles_by_position
from surgeon.core.selection.selection import Selection
from surgeon.errors import RecipeError


class Freeze(Operation, frozen=True, kw_only=True):
    """Freeze layers, roles within layers, or single matrices.

    `layers` freezes those layers. `except` freezes everything but those layers: the other layers, the embedding, the
    head and the final norm. Training honours it, an adapter on a frozen matrix included, and an export lists the
    parameters that stay trainable.
    """

    name = "freeze"
    key = "f"
    summary = "keep layers, or matrices within them, from being trained"

    layers: Annotated[Selection | None, msgspec.Meta(description="freeze these layers")] = None
    except_: Annotated[Selection | None, msgspec.Meta(description="freeze everything but these layers")] = (
        msgspec.field(name="except", default=None)
    )
    matrices: MatrixChoice = None
    roles: Annotated[tuple[str, ...], msgspec.Meta(description="only these roles: attention, mlp.down, …")] = ("all",)
    outside: Annotated[
        tuple[Literal["embedding", "head", "norm"], ...],
        msgspec.Meta(description="freeze these too: embedding, head, norm"),
    ] = ()

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Add to what is frozen."""
        self._refuse_contradictions()
        self._refuse_tied_head(draft)
        if self.matrices is not None:
            return self._freeze_matrices(draft, roles_by_position(chosen["matrices"]))
        roles = matching_roles(draft, self.roles, self.stack)
        layers = draft.layers(self.stack)
        kept = set(chosen.get("except", ()))
        wanted = set(chosen.get("layers", ())) if self.except_ is None else set(range(len(layers))) - kept
        if self.layers is not None and not wanted:
            raise RecipeError("chooses no layer", where="layers", hint="leave the step out")
        frozen = [
            replace(layer, frozen=layer.frozen | (roles & layer_roles(draft, layer, self.stack)))
            if at in wanted
            else layer
            for at, layer in enumerate(layers)
        ]
        outside = OUTSIDE if self.except_ is not None and self.roles == ("all",) else self.outside
        return replace(draft.with_layers(tuple(frozen), self.stack), frozen=draft.frozen | set(outside))

    def _refuse_contradictions(self) -> None:
        """Refuse fields that would say nothing beside each other."""
        ways = [way for way in (self.layers, self.except_, self.matrices) if way is not None]
        if len(ways) > 1 or not (ways or self.outside):
            given = " and ".join(f"`{name}`" for name in self.selections())
            raise RecipeError(
                f"takes one of `layers`, `except` and `matrices`, not {given}"
                if given
                else "needs one of `layers`, `except` and `matrices`",
                allowed="layers: 0-3, except: inserted, or matrices: lowest 25% by taylor",
            )
        if self.matrices is not None and self.roles != ("all",):
            raise RecipeError("does not go with `matrices`", where="roles", hint="name the roles in `matrices`")
        if self.except_ is not None and self.roles == ("all",) and self.outside:
            raise RecipeError(
                "`except` freezes embedding, head and norm already, whatever is named", where="outside",
                allowed="layers: except last 3, which freezes of these only what `outside` names",
                hint="say layers: except … to leave some of them free, or leave `outside` out",
            )  # fmt: skip

    def _refuse_tied_head(self, draft: Draft) -> None:
        """Refuse to freeze a head that has no weights of its own while the embedding, which it is, stays free."""
        if "head" not in self.outside or "embedding" in {*self.outside, *draft.frozen}:
            return
        if not has_own_head(draft):
            raise RecipeError(
                "the head has no weights of its own: they are the embedding's, which stays free", where="outside",
                allowed="[embedding], which is both, or untie before", hint="add embedding, or an untie step",
            )  # fmt: skip

    def _freeze_matrices(self, draft: Draft, wanted: Mapping[int, frozenset[str]]) -> Draft:
        layers = [
            replace(layer, frozen=layer.frozen | wanted.get(at, frozenset()))
            for at, layer in enumerate(draft.layers(self.stack))
        ]
        return replace(draft.with_layers(tuple(layers), self.stack), frozen=draft.frozen | set(self.outside))
