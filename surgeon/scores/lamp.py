"""Which matrices magnitude pruning would spare if all compete for the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgeon.core.score import WeightsScore

if TYPE_CHECKING:
    from torch import Tensor

    from surgeon.core.score import Matrix

_BINS = 4096
_LOWEST_LOG10 = -16.0


class Lamp(WeightsScore, frozen=True, kw_only=True):
    """The share of a matrix's weights that survive when half of all weights go, the lowest LAMP scores first.

    A weight's LAMP score is its square over the sum of the squares of all weights of its matrix that are at least as
    large. The scores of all matrices are ranked together, by a histogram of their logarithms.
    """

    name = "lamp"
    title = "LAMP"
    asks = "what share of its weights survives when the model's smaller half goes"
    cost = "reads the weights once"
    paper = "Layer-Adaptive Magnitude-based Pruning, arXiv:2010.07611, equation 4"
    compares = True

    kept: float = 0.5

    def matrix(self, matrix: Matrix) -> Tensor:
        """Return the histogram of log10 LAMP scores, from 1e-16 to 1.

        Weights are counted by magnitude, which bfloat16 has 32768 of, instead of sorted; wider dtypes are rounded to
        it.
        """
        import torch

        codes = matrix.weight.to(torch.bfloat16).contiguous().view(torch.int16) & 0x7FFF
        counts = torch.bincount(codes.flatten().int(), minlength=2**15).double()
        squares = torch.arange(2**15, dtype=torch.int16).view(torch.bfloat16).double().square()
        present = counts > 0
        counts, squares = counts[present], squares[present]
        at_least_as_large = (counts * squares).flip(0).cumsum(0).flip(0)
        scores = (squares / at_least_as_large.clamp(min=1e-300)).clamp(min=10**_LOWEST_LOG10, max=1.0)
        bins = (scores.log10() / -_LOWEST_LOG10 + 1) * (_BINS - 1)
        return torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins.long(), counts)

    def settle(self, summaries: Sequence[Tensor]) -> list[float]:
        """Return the share of each matrix above the model's common threshold."""
        import torch

        from_top = torch.stack(list(summaries)).flip(1).cumsum(1)
        totals = from_top.sum(0)
        threshold = int((totals >= self.kept * totals[-1]).nonzero()[0])
        shares: list[float] = (from_top[:, threshold] / from_top[:, -1]).tolist()
        return shares
