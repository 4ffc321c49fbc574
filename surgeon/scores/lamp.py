"""Which matrices magnitude pruning would spare if all compete for the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec

from surgeon.core.scoring.score_kinds import WeightsScore

if TYPE_CHECKING:
    from torch import Tensor

    from surgeon.core.scoring.score_kinds import Matrix

_BINS = 1024
_DECADES = 16.0  # scores below 1e-16 share the lowest bin
_TIE_STEPS = 8


class Lamp(WeightsScore, frozen=True, kw_only=True):
    """The share of a matrix's weights that survive when half of all weights go, the lowest LAMP scores first.

    The weights of a matrix are ranked by magnitude, equal ones in any order. A weight's LAMP score is its square over
    the sum of the squares of itself and all that rank above it. The scores of all matrices are ranked together, by a
    histogram of their logarithms: shares are exact to about 1e-3.
    """

    decomposes = False
    name = "lamp"
    title = "LAMP"
    asks = "what share of its weights survives when the model's smaller half goes"
    cost = "reads the weights once"
    paper = "Layer-Adaptive Magnitude-based Pruning, arXiv:2010.07611, equation 4"
    compares = True

    kept: Annotated[float, msgspec.Meta(gt=0, lt=1, description="share of all weights that survive")] = 0.5

    def matrix(self, matrix: Matrix) -> dict[int, float]:
        """Return the histogram of the logarithms of LAMP scores, by bin; bin 0 is 1e-16 and less.

        Weights are counted by magnitude, which bfloat16 has 32768 of, instead of sorted; wider dtypes are rounded to
        it.
        """
        import torch

        squares, counts = _groups(matrix.weight)
        above = (squares * counts).flip(0).cumsum(0).flip(0) - squares * counts
        histogram = torch.zeros(_BINS, dtype=torch.float64)
        for step in range(_TIE_STEPS):
            # Of n equal weights the k-th from above shares its denominator with k: a run of scores, not one.
            ahead = (counts * (step + 0.5) / _TIE_STEPS).clamp(min=1)
            scores = squares / (above + ahead * squares)
            # Where everything is zero there is no score; nothing of it survives.
            bins = ((scores.nan_to_num(0).log10() / _DECADES + 1) * _BINS).clamp(0, _BINS - 1)
            histogram.index_add_(0, bins.long(), counts / _TIE_STEPS)
        used = histogram.nonzero().flatten()
        return dict(zip(used.tolist(), histogram[used].tolist(), strict=True))

    def finalize(self, summaries: Sequence[Mapping[int, float]]) -> list[float]:
        """Return the share of each matrix above the model's common threshold, within a bin in proportion."""
        totals = [0.0] * _BINS
        for summary in summaries:
            for place, count in summary.items():
                totals[place] += count
        wanted = self.kept * sum(totals)
        threshold = _BINS
        while wanted > 0 and threshold > 0:
            threshold -= 1
            wanted -= totals[threshold]
        # So much of the threshold's bin goes over the budget.
        over = -wanted / totals[threshold] if totals[threshold] else 0.0
        return [_share(summary, threshold, 1 - over) for summary in summaries]


def _groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct squared magnitudes in float64, ascending, and how many weights have each."""
    import torch

    codes = weight.to(torch.bfloat16).contiguous().view(torch.int16) & 0x7FFF
    counts = torch.bincount(codes.flatten(), minlength=2**15).double()
    squares = torch.arange(2**15, dtype=torch.int16).view(torch.bfloat16).double().square()
    present = counts > 0
    return squares[present], counts[present]


def _share(summary: Mapping[int, float], threshold: int, part: float) -> float:
    above = sum(count for place, count in summary.items() if place > threshold)
    total = sum(summary.values())
    return (above + part * summary.get(threshold, 0.0)) / total if total else 0.0
