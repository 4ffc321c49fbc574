"""What a matrix has learned: singular values that random entries of the same size cannot have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import WeightsScore

if TYPE_CHECKING:
    from surgeon.core.scoring.score_kinds import Matrix

# 99.9 % quantile of the Tracy-Widom law for real matrices: the largest eigenvalue of noise stays below in 999 of 1000.
_TRACY_WIDOM_999 = 3.272
_STEPS = 8192


class RandomMatrix(WeightsScore, frozen=True, kw_only=True):
    """How many singular values lie outside the Marchenko-Pastur bulk, above or below.

    The bulk's scale comes from the median singular value, which a few outliers do not move; nothing is fitted. Both
    edges carry a Tracy-Widom margin, so that Gaussian noise scores 0 and a planted rank-k signal scores k. A square
    matrix has no lower edge. Rounding to 4 bits fills in the lower edge: counts below it mean little there.
    """

    name = "random_matrix"
    title = "MP-out"
    asks = "how many singular values could not come from random weights"
    cost = "seconds: eigenvalues of every matrix"
    paper = "Small Singular Values Matter, arXiv:2410.17770, section 3"

    def matrix(self, matrix: Matrix) -> float:
        """Return the number of singular values above and below the bulk."""
        details = self.details(matrix)
        return details["above"] + details["below"]

    def details(self, matrix: Matrix) -> Mapping[str, float]:
        """Return counts, shares of the energy (squared singular values), sigma, and the edges without margin.

        sigma is the standard deviation of the entries of a random matrix with the same median singular value.
        """
        squares = matrix.singular_values.square()
        long, short = max(matrix.shape), min(matrix.shape)
        median = float((squares[(short - 1) // 2] + squares[short // 2]) / 2)
        variance = median / (long * median_of_bulk(short / long))
        low, high = edges(long, short)
        above, below = squares > variance * high, squares < variance * low
        energy = float(squares.sum()) or 1.0
        sigma = math.sqrt(variance)
        return {
            "above": float(above.sum()),
            "below": float(below.sum()),
            "energy_above": float(squares[above].sum()) / energy,
            "energy_below": float(squares[below].sum()) / energy,
            "sigma": sigma,
            "edge_low": sigma * (math.sqrt(long) - math.sqrt(short)),
            "edge_high": sigma * (math.sqrt(long) + math.sqrt(short)),
        }

    def layer(self, matrices: Mapping[str, float]) -> float:
        """Return the number of outliers of all matrices."""
        return math.fsum(matrices.values())


def edges(long: int, short: int) -> tuple[float, float]:
    """Return the squared singular values that unit-variance noise stays between, Tracy-Widom margin included.

    Centre and width are Johnstone's for real Wishart matrices (Ann. Statist. 29, 2001).
    """
    a, b = math.sqrt(long - 0.5), math.sqrt(short - 0.5)
    high = (a + b) ** 2 + _TRACY_WIDOM_999 * (a + b) * (1 / a + 1 / b) ** (1 / 3)
    if long == short:
        return 0.0, high
    low = (a - b) ** 2 - _TRACY_WIDOM_999 * (a - b) * (1 / b - 1 / a) ** (1 / 3)
    return max(low, 0.0), high


@lru_cache(maxsize=256)
def median_of_bulk(ratio: float) -> float:
    """Return the median of the Marchenko-Pastur law of unit variance for `ratio` = short / long in (0, 1].

    The density sqrt((high - x)(x - low)) / (2 pi ratio x) is summed over x = middle - half cos(t), which makes it
    smooth at both edges.
    """
    root = math.sqrt(ratio)
    low, high = (1 - root) ** 2, (1 + root) ** 2
    middle, half = (low + high) / 2, (high - low) / 2
    step = math.pi / _STEPS
    total = 0.0
    for number in range(_STEPS):
        angle = (number + 0.5) * step
        x = middle - half * math.cos(angle)
        total += (half * math.sin(angle)) ** 2 / (2 * math.pi * ratio * x) * step
        if total >= 0.5:
            return x
    return high
