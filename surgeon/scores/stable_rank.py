"""Over how many directions a matrix spreads its energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import WeightsScore

if TYPE_CHECKING:
    from surgeon.core.scoring.score_kinds import Matrix


class StableRank(WeightsScore, frozen=True, kw_only=True):
    """Squared Frobenius norm over squared spectral norm, between 1 and the rank; of a layer, the mean."""

    name = "stable_rank"
    title = "srank"
    asks = "over how many directions do the matrices spread their energy"
    cost = "seconds: eigenvalues of every matrix"
    paper = "Rudelson and Vershynin, J. ACM 54 (2007)"

    def matrix(self, matrix: Matrix) -> float:
        """Return the stable rank; 0 for a matrix of zeros."""
        squares = matrix.singular_values.square()
        return float(squares.sum() / squares[0]) if squares[0] > 0 else 0.0
