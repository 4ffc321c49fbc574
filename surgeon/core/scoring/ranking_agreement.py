"""How alike two rankings are: the overlap of their tops beside what chance gives, and the rank correlation."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from surgeon.errors import UsageError

Key = TypeVar("Key", bound=Hashable)


def jaccard(left: Collection[Hashable], right: Collection[Hashable]) -> float:
    """Return |intersection| / |union| of two sets; 1 for two empty ones."""
    one, other = set(left), set(right)
    return len(one & other) / len(one | other) if one or other else 1.0


def chance_jaccard(chosen: int, count: int) -> float:
    """Return the expected Jaccard overlap of two independent random subsets of `chosen` out of `count`.

    Exact: their intersection is hypergeometric, and k shared of 2 * chosen - k are weighted by its probability. For
    large counts it nears p / (2 - p), p = chosen / count; see `approximate_chance`.
    """
    if not 0 <= chosen <= count:
        raise UsageError(f"{chosen} of {count} cannot be chosen", allowed=f"0-{count}")
    if chosen == 0:
        return 1.0
    total = math.comb(count, chosen)
    shared = range(max(0, 2 * chosen - count), chosen + 1)
    ways = {k: math.comb(chosen, k) * math.comb(count - chosen, chosen - k) for k in shared}
    # Whole numbers until the last division: the binomials of a large model leave the range of a float.
    return math.fsum(many / total * k / (2 * chosen - k) for k, many in ways.items())


def approximate_chance(share: float) -> float:
    """Return p / (2 - p): the overlap of two random shares p where nothing varies."""
    return share / (2 - share)


def top(values: Mapping[Key, float], share: float) -> list[Key]:
    """Return the highest share of the keys, rounded to whole ones; ties keep the order they came in."""
    return sorted(values, key=lambda key: values[key], reverse=True)[: round(share * len(values))]


def undecided(values: Mapping[Key, float], share: float) -> int:
    """Return how many keys of one value the cut below the highest share goes through; 0 where it parts two values."""
    ordered = sorted(values.values(), reverse=True)
    cut = round(share * len(ordered))
    if not 0 < cut < len(ordered) or ordered[cut - 1] != ordered[cut]:
        return 0
    return ordered.count(ordered[cut])


@dataclass(frozen=True)
class Overlap:
    """How far two rankings agree on their highest share, and how far two random ones would.

    undecided: by how many equal keys each of the two is cut through; the order they came in, the same in both, chose
        among these, so the overlap is above chance for no reason.
    """

    share: float
    chosen: int
    count: int
    jaccard: float
    chance: float
    undecided: tuple[int, int] = (0, 0)

    @property
    def approximation(self) -> float:
        """The chance level as it is usually told."""
        return approximate_chance(self.share)


def overlap(left: Mapping[Key, float], right: Mapping[Key, float], share: float) -> Overlap:
    """Compare the highest share of two rankings of the same things.

    Raises:
        UsageError: they rank different things.
    """
    _refuse_unlike(left, right)
    first, second = top(left, share), top(right, share)
    chance, cuts = chance_jaccard(len(first), len(left)), (undecided(left, share), undecided(right, share))
    return Overlap(share, len(first), len(left), jaccard(first, second), chance, cuts)


def spearman(left: Mapping[Key, float], right: Mapping[Key, float]) -> float:
    """Return the rank correlation, ties at their mean rank; nan where one side does not vary.

    Raises:
        UsageError: they rank different things.
    """
    _refuse_unlike(left, right)
    keys = list(left)
    first, second = _ranks([left[key] for key in keys]), _ranks([right[key] for key in keys])
    middle = (len(keys) + 1) / 2
    products = math.fsum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = math.sqrt(math.fsum((a - middle) ** 2 for a in first) * math.fsum((b - middle) ** 2 for b in second))
    return products / spread if spread else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    """Return each value's rank from 1, equal ones at the mean of theirs."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for at in order[start:stop]:
            ranks[at] = (start + 1 + stop) / 2
        start = stop
    return ranks


def _refuse_unlike(left: Mapping[Key, float], right: Mapping[Key, float]) -> None:
    if left.keys() != right.keys():
        stray = sorted(map(str, left.keys() ^ right.keys()))
        raise UsageError(
            f"they do not rank the same things: only one has {stray[0]} ({len(stray)} in all)",
            hint="measure both on the same model, after the same steps",
        )
