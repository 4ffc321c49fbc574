"""How heavy the tail of a matrix's spectrum is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import WeightsScore

if TYPE_CHECKING:
    from torch import Tensor

    from surgeon.core.scoring.score_kinds import Matrix

_FEWEST_IN_TAIL = 10


class PowerLawAlpha(WeightsScore, frozen=True, kw_only=True):
    """The exponent alpha of a power law fitted to the eigenvalues of the Gram matrix, with its sign turned.

    A well-trained matrix has a heavy tail, alpha about 2 to 4; noise has a large alpha. So that higher means more
    important, the score is -alpha. The tail's start is where the fit is closest in Kolmogorov-Smirnov distance.
    """

    name = "power_law_alpha"
    title = "-alpha"
    asks = "how heavy is the tail of the spectrum (minus the exponent)"
    cost = "seconds: eigenvalues of every matrix"
    paper = "Martin and Mahoney, JMLR 22 (2021); Clauset et al., arXiv:0706.1062, section 3"

    def matrix(self, matrix: Matrix) -> float:
        """Return -alpha."""
        values = matrix.singular_values
        return -fit_exponent(values[values > 0].square().flip(0))


def fit_exponent(ascending: Tensor) -> float:
    """Return the maximum-likelihood exponent of the tail whose Kolmogorov-Smirnov distance is smallest.

    `ascending` are positive values in float64. All tail starts are tried at once, so memory is quadratic in their
    number.
    """
    import torch

    count = len(ascending)
    starts = torch.arange(max(count - _FEWEST_IN_TAIL, 1))
    logs = ascending.log()
    sizes = (count - starts).double()
    tail_sums = logs.flip(0).cumsum(0).flip(0)[starts]
    alphas = 1 + sizes / (tail_sums - sizes * logs[starts]).clamp(min=1e-300)
    # In place: the matrix of all starts by all values is what this costs.
    law = logs[None] - logs[starts][:, None]
    law.mul_((1 - alphas)[:, None]).clamp_(max=0).exp_().neg_().add_(1)
    law.sub_((torch.arange(count, dtype=torch.float64)[None] - starts[:, None]) / sizes[:, None])
    distances = law.abs_().triu_().amax(dim=1)
    return float(alphas[distances.argmin()])
