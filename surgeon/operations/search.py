"""Searches for the layers that cost least when they go."""

from __future__ import annotations

from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.operation import Chosen, Operation
from surgeon.core.selection.selection import Except, Ranked, Selection
from surgeon.errors import RecipeError

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Search(Operation, frozen=True, kw_only=True):
    """Try sets of layers, measure the loss without each, and remove the best set.

    Greedy for a `width` of 1: the layer that costs least goes, and what the rest costs is measured anew without it,
    until so many are gone; a wider search goes on with the best sets of each size. The lowest layers by the scores in
    `by` are tried too. The table of what was tried, with the Pareto front of loss against parameters, stands in
    `surgeon_search.json` of the export. A replay removes the same layers and searches nothing.
    """

    name = "search"
    key = "F"
    summary = "remove the layers that a search on the edited model finds to cost least"
    paper = "greedy removal by the loss of the pruned model: SLEB, arXiv:2402.09025"
    searches = True

    remove: Annotated[Positive, msgspec.Meta(description="how many layers go")]
    layers: Annotated[Selection | None, msgspec.Meta(description="which layers may go; none: all")] = None
    width: Annotated[
        Annotated[int, msgspec.Meta(ge=0)], msgspec.Meta(description="sets that go on; 1: greedy, 0: scores alone")
    ] = 1
    by: Annotated[tuple[str, ...], msgspec.Meta(description="scores whose lowest layers are tried too")] = ()
    data: Annotated[
        str | None, msgspec.Meta(description="a name from the recipe's data, or a file; none: built-in text")
    ] = None
    sequences: Annotated[Positive, msgspec.Meta(description="pieces of text")] = 12
    length: Annotated[int, msgspec.Meta(ge=4, description="tokens in each piece")] = 256

    @property
    def rounds(self) -> int:
        """How many times sets of layers are measured, each at most as many as there are layers."""
        return 1 + (self.remove - 1) * self.width if self.width else 1

    def selections(self) -> dict[str, Selection]:
        """Return what the result is in the language of selections: so many of the layers that may go.

        Raises:
            RecipeError: nothing is tried, or which layers may go is to be ranked.
        """
        if not self.width and not self.by:
            raise RecipeError("tries nothing", where="width", allowed="1 and more; or scores in `by`")
        if self.layers is not None and any(self.layers.ranked()):
            raise RecipeError(
                "says which layers may go, and ranks", where="layers", allowed="layers by name: 1-28",
                hint="leave it out; a search measures every layer itself",
            )  # fmt: skip
        protect = () if self.layers is None else (Selection((Except(self.layers),), f"except {self.layers}"),)
        term = Ranked("lowest", str(self.remove), "removal", self.data, protect)
        return {"layers": Selection((term,), f"lowest {self.remove} by a search")}

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Drop the layers that were found."""
        layers = draft.layers(self.stack)
        gone = set(chosen["layers"])
        if len(gone) == len(layers):
            raise RecipeError(f"removes all {len(layers)} layers", where="remove", allowed="at least one must stay")
        return draft.with_layers(tuple(layer for at, layer in enumerate(layers) if at not in gone), self.stack)
