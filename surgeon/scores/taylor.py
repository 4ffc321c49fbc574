"""How much the loss would change, to first order, if weights went to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import GradientsScore

if TYPE_CHECKING:
    from torch import Tensor


class Taylor(GradientsScore, frozen=True, kw_only=True):
    """Sum of |gradient x weight| over a matrix's weights, averaged over sequences."""

    name = "taylor"
    title = "|g.w|"
    asks = "how much would the loss change, to first order, if weights went to zero"
    cost = "one forward and backward, the whole model in memory twice"
    paper = "LLM-Pruner, arXiv:2305.11627, equation 5"

    def matrix(self, weight: Tensor, gradient: Tensor) -> float:
        """Return the sum for one sequence."""
        return float((gradient.float() * weight.float()).abs().sum())
