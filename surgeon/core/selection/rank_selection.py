"""The rank of each adapter from the importance of its matrix: the mean is given, and a high score gets more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from surgeon.core.plan.draft import Draft
from surgeon.core.scoring.score import Score
from surgeon.core.selection.matrix_selection import Spot, matrix_shapes
from surgeon.core.selection.selection import Ranked
from surgeon.core.selection.spot_selection import SpotSelection, required, split_spot
from surgeon.errors import SelectionError

Scores = Mapping[Ranked, Score]
Wanted = Callable[[Draft, Scores], Mapping[int, frozenset[str]]]
"""Gives the roles that are adapted, by position."""


class RankSelection(SpotSelection):
    """The ranks of the adapters on some matrices, by a score: `POSITION.ROLE=RANK` for each.

    mean: of all ranks.   least: of any.   wanted: which matrices are adapted.
    """

    __slots__ = ("least", "mean", "wanted")
    what = "ranks"

    def __init__(self, by: str, data: str | None, mean: int, least: int, wanted: Wanted) -> None:
        self.mean, self.least, self.wanted = mean, least, wanted
        text = f"by {by}, mean {mean}, least {least}"
        super().__init__((Ranked("ranks", f"{mean} {least}", by, data, ()),), (), text)

    def spots(self, draft: Draft, stack: str | None, scores: Scores) -> tuple[str, ...]:
        """Return the ranks, in the order of the layers.

        Raises:
            SelectionError: the score is not there, or has no value for a matrix that is adapted.
        """
        (term,) = self.ranked()
        score = required(term, scores)
        spots = [(at, role) for at, roles in sorted(self.wanted(draft, scores).items()) for role in sorted(roles)]
        shapes = matrix_shapes(draft, stack)
        values = [_value(score, draft, stack, spot) for spot in spots]
        if max(values, default=0.0) <= 0 and len(set(values)) > 1:
            raise SelectionError(
                f"{term.by} has no positive value, and ranks are in proportion to what is positive", where="by",
                allowed="a score such as taylor, fisher, block_influence or weight_norm",
            )  # fmt: skip
        found = ranks_of(values, [min(shapes[spot]) for spot in spots], self.mean, self.least)
        return tuple(f"{at}.{role}={rank}" for (at, role), rank in zip(spots, found, strict=True))

    def contradiction(self, chosen: Sequence[str], draft: Draft, stack: str | None) -> str:
        """Return what ranks come to instead of `chosen`, in words; empty where they may come to that."""
        found = ranks_by_spot(chosen)
        stray = sorted(found.keys() - matrix_shapes(draft, stack).keys())
        if stray:
            return f"is of matrices of the model, and {stray[0][0]}.{stray[0][1]} is none"
        if min(found.values(), default=self.least) < self.least or sum(found.values()) > self.mean * len(found):
            return f"is at least {self.least} each, and {self.mean} in the mean"
        return ""


def ranks_by_spot(chosen: Sequence[int | str]) -> dict[Spot, int]:
    """Turn `POSITION.ROLE=RANK` texts into ranks.

    Raises:
        SelectionError: one is not of that form.
    """
    found = {}
    for text in map(str, chosen):
        spot, equals, rank = text.partition("=")
        if not (equals and rank.isdigit() and int(rank)):
            raise SelectionError(f"{text!r} is no rank", allowed="POSITION.ROLE=RANK, such as 3.mlp.up=12")
        found[split_spot(spot, "rank", "3.mlp.up=12")] = int(rank)
    return found


def _value(score: Score, draft: Draft, stack: str | None, spot: Spot) -> float:
    """Return the mean over a layer's matrices of a role, or the layer's own value where a score is of layers alone."""
    position, role = spot
    layer = draft.layers(stack)[position]
    of_role = [
        value
        for name, value in score.matrices.get(layer.key, {}).items()
        if draft.structure.role(name.partition("[")[0]) == role
    ]
    value = math.fsum(of_role) / len(of_role) if of_role else score.values.get(layer.key, math.nan)
    if (score.matrices and not of_role) or not math.isfinite(value):
        raise SelectionError(f"{score.name} has no value for {position}.{role}", hint="choose another score, or roles")
    return value


def ranks_of(values: Sequence[float], most: Sequence[int], mean: int, least: int) -> list[int]:
    """Return a rank for each value: `mean` times as many in all, at least `least` each, the rest in proportion.

    What is not positive has the least; no rank is more than `most`, the smaller side of its matrix. Rounded so that the
    sum is kept: the largest remainders are rounded up, the first ones where they are equal.
    """
    weights = [max(value, 0.0) for value in values]
    if not any(weights):
        weights = [1.0] * len(weights)
    found = [min(least, bound) for bound in most]
    left = mean * len(values) - sum(found)
    free = [at for at, weight in enumerate(weights) if weight > 0 and found[at] < most[at]]
    while left > 0 and free:
        total = math.fsum(weights[at] for at in free)
        shares = {at: left * weights[at] / total for at in free}
        full = [at for at in free if shares[at] >= most[at] - found[at]]
        if not full:
            whole = {at: math.floor(share) for at, share in shares.items()}
            rest = left - sum(whole.values())
            up = sorted(free, key=lambda at: (whole[at] - shares[at], at))[:rest]
            for at in free:
                found[at] += whole[at] + (at in set(up))
            break
        for at in full:
            left -= most[at] - found[at]
            found[at] = most[at]
        free = [at for at in free if at not in set(full)]
    return found
