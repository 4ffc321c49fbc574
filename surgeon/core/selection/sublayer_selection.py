"""Which sublayers: `3.mlp`, `0-3.attention` (a selection of layers, a dot, a sublayer), `lowest 4 by shapley`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgeon.core.plan.draft import Draft
from surgeon.core.scoring.score import Score
from surgeon.core.selection.ranking import number_of
from surgeon.core.selection.selection import Ranked
from surgeon.core.selection.spot_selection import SpotSelection, many, required
from surgeon.core.structure.structure import SUBLAYERS
from surgeon.errors import SelectionError

Spot = tuple[int, str]


class SublayerSelection(SpotSelection):
    """A parsed selection of sublayers. A ranking is over those of all layers together."""

    __slots__ = ()
    what = "sublayers"
    metavar = "SUBLAYERS"
    grammar = "3.mlp · 0-3.attention · all.mlp · lowest 4 by shapley · lowest 4 by shapley(longest=1)"

    @classmethod
    def name_of(cls, text: str) -> str:
        """Return the name of a sublayer, once it is checked."""
        if text not in SUBLAYERS:
            raise SelectionError(f"there is no sublayer {text!r}", allowed=", ".join(SUBLAYERS))
        return text

    def spots(self, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score]) -> tuple[str, ...]:
        """Return the chosen sublayers as `POSITION.SUBLAYER`, in the order of the layers.

        Raises:
            SelectionError: a layer does not exist, or a score is missing or says nothing of sublayers.
        """
        layers = draft.layers(stack)
        chosen: set[Spot] = {(at, name) for where, name in self.named for at in where.positions(layers)}
        for term in self.ranked():
            protected = {at for part in term.protect for at in part.positions(layers, scores)}
            values = _values(required(term, scores), len(layers))
            free = [spot for spot in values if spot[0] not in protected]
            count = number_of(term.count, len(values))
            if count > len(free):
                raise SelectionError(f"{term.order} {term.count} of {len(free)} sublayers that are not protected")
            ordered = sorted(free, key=lambda spot: values[spot], reverse=term.order == "highest")
            chosen.update(ordered[:count])
        return tuple(f"{at}.{name}" for at, name in sorted(chosen))

    def contradiction(self, chosen: Sequence[str], draft: Draft, stack: str | None) -> str:
        """Return what it comes to instead of `chosen`, in words; empty where it may come to that.

        Raises:
            SelectionError: it asks for layers that are not there.
        """
        count = len(draft.layers(stack))
        known = {f"{at}.{name}" for at in range(count) for name in SUBLAYERS}
        stray = next((spot for spot in chosen if spot not in known), None)
        if stray:
            return f"is sublayers of the model, and {stray} is none"
        named = SublayerSelection((), self.named, self.raw).spots(draft, stack, {})
        counts = [number_of(term.count, len(known)) for term in self.ranked()]
        least, most = max([len(named), *counts]), len(named) + sum(counts)
        if not set(named) <= set(chosen) or not least <= len(set(chosen)) <= most:
            return f"is {many(least, most)}" if counts else f"is {', '.join(named) or 'none'}"
        return ""


def _values(score: Score, layers: int) -> dict[Spot, float]:
    """Return what a score says of each sublayer, which it has among its details."""
    found = {
        (at, name): float(value)
        for name in SUBLAYERS
        for at, value in enumerate(score.details.get(name, ()))
        if value is not None
    }
    if any(len(score.details.get(name, ())) != layers for name in SUBLAYERS):
        raise SelectionError(
            f"{score.name} has no values for the sublayers of {layers} layers",
            allowed="shapley, shapley(longest=1)",
            hint="measure it on the model at this step",
        )
    return found
