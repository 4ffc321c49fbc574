"""Whether a matrix's singular vectors point where its inputs vary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import InputsScore

if TYPE_CHECKING:
    from torch import Tensor

_SIGMAS = 3.0


class ActivationOverlap(InputsScore, frozen=True, kw_only=True):
    """The share of right singular vectors that overlap an eigenvector of the input covariance more than chance allows.

    O_k = max over j of |v_k . f_j|; the absolute value, since the sign of either vector means nothing. Chance is the
    mean plus three standard deviations of the same maximum over random unit vectors.
    """

    name = "activation_overlap"
    title = "overlap"
    asks = "do the matrix's directions point where its inputs vary"
    cost = "one forward; a full SVD and an eigenproblem per matrix"
    paper = "Small Singular Values Matter, arXiv:2410.17770, section 4"

    def matrix(self, weight: Tensor, covariance: Tensor) -> float:
        """Return the share of vectors beyond chance, in [0, 1]."""
        overlaps_K = overlaps(weight, covariance)
        mean, deviation = chance(weight.shape[1])
        return float((overlaps_K > mean + _SIGMAS * deviation).double().mean())


def overlaps(weight: Tensor, covariance: Tensor) -> Tensor:
    """Return O_k for every right singular vector, largest singular value first; weight is (out, in)."""
    import torch

    _, _, right_KD = torch.linalg.svd(weight.double(), full_matrices=False)
    _, directions_DJ = torch.linalg.eigh(covariance)
    return torch.amax((right_KD @ directions_DJ).abs(), dim=1)


def chance(width: int) -> tuple[float, float]:
    """Return mean and standard deviation of max_j |u_j| for a random unit vector u of that width.

    The entries are nearly independent normals of variance 1/width; their maximum follows a Gumbel law.
    """
    from statistics import NormalDist

    normal = NormalDist()
    location = normal.inv_cdf(1 - 1 / (2 * width))
    scale = normal.inv_cdf(1 - 1 / (2 * width * math.e)) - location
    euler = 0.5772156649
    root = math.sqrt(width)
    return (location + euler * scale) / root, scale * math.pi / math.sqrt(6) / root
