"""What a selection can come to, whatever a score says: all of a plain one, the count and the shape of a ranked one.

Tells where a recipe's `resolved` contradicts the words beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.core.plan.draft import Layer
from surgeon.core.selection.ranking import number_of
from surgeon.core.selection.selection import Except, Ranked, Selection, spans
from surgeon.core.selection.spot_selection import many


def layer_contradiction(selection: Selection, chosen: Sequence[int], layers: Sequence[Layer]) -> str:
    """Return what a selection of layers comes to instead of `chosen`, in words; empty where it may come to that.

    Raises:
        SelectionError: it asks for layers that are not there.
    """
    if not any(selection.ranked()):
        expected = selection.positions(layers)
        return "" if set(expected) == set(chosen) else f"is {spans(expected) or 'none'}"
    (first, *_) = selection.terms
    if isinstance(first, Except):
        return layer_contradiction(first.of, sorted(set(range(len(layers))) - set(chosen)), layers)
    ranked = [term for term in selection.terms if isinstance(term, Ranked)]
    rest = tuple(term for term in selection.terms if not isinstance(term, Ranked))
    plain = Selection(rest, "").positions(layers)
    bounds = [_bounds(term, len(layers)) for term in ranked]
    least = max(len(plain), *(low for low, _ in bounds))
    most = min(len(layers), len(plain) + sum(high for _, high in bounds))
    if not set(plain) <= set(chosen) or not least <= len(set(chosen)) <= most:
        return f"is {many(least, most)}" + (f", {spans(plain)} among them" if plain else "")
    return _shape(ranked[0], sorted(set(chosen)), layers) if not rest and len(ranked) == 1 else ""


def _bounds(term: Ranked, layers: int) -> tuple[int, int]:
    return (0, layers) if term.order == "through" else (number_of(term.count, layers),) * 2


def _shape(term: Ranked, chosen: Sequence[int], layers: Sequence[Layer]) -> str:
    """Return what a single ranked part never comes to: protected layers, gaps in a block, gaps in a beginning."""
    if any(any(part.ranked()) for part in term.protect):
        return ""
    protected = {position for part in term.protect for position in part.positions(layers)}
    free = [position for position in range(len(layers)) if position not in protected]
    if protected & set(chosen):
        return f"leaves out {spans(sorted(protected))}"
    if term.order == "block" and chosen and chosen[-1] - chosen[0] >= len(chosen):
        return "is adjacent layers"
    if term.order == "through" and list(chosen) != free[: len(chosen)]:
        return "is a layer and all before it"
    return ""
