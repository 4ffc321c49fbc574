"""How sharply the loss depends on a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import GradientsScore

if TYPE_CHECKING:
    from torch import Tensor


class Fisher(GradientsScore, frozen=True, kw_only=True):
    """Sum of squared gradients: the trace of the empirical Fisher information, averaged over sequences."""

    name = "fisher"
    title = "fisher"
    asks = "how sharply does the loss depend on the weights"
    cost = "one forward and backward, the whole model in memory twice"
    paper = "empirical Fisher information; Optimal Brain Surgeon tradition (Hassibi and Stork, 1993)"

    def matrix(self, weight: Tensor, gradient: Tensor) -> float:
        """Return the squared norm of the gradient for one sequence."""
        del weight
        return float(gradient.float().square().sum())
