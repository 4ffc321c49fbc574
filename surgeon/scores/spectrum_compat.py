"""The number that Spectrum and laserRMT call a signal-to-noise ratio, for comparison with their results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import WeightsScore

if TYPE_CHECKING:
    from surgeon.core.scoring.score_kinds import Matrix

_NORMAL_QUARTILES = 1.349  # interquartile range of a standard normal


class SpectrumCompat(WeightsScore, frozen=True, kw_only=True):
    """Sum of singular values above a threshold over the sum below it, divided by the largest.

    Despite its name elsewhere it is no test against random matrices: its sigma is the interquartile range of the
    singular values themselves, so the threshold falls inside the noise, and a quarter to all of the singular values of
    pure Gaussian noise count as signal. Use `random_matrix` to ask that; use this to compare with published lists.
    """

    name = "spectrum_compat"
    title = "SNR"
    asks = "what would Spectrum's SNR be (no noise test: for comparison only)"
    cost = "seconds: eigenvalues of every matrix"
    paper = "Spectrum, arXiv:2406.06623"

    def matrix(self, matrix: Matrix) -> float:
        """Return the ratio; 0 for a matrix of zeros.

        Where nothing lies below the threshold the ratio would be infinite: the smallest value stands for the noise.
        """
        values = matrix.singular_values
        if not values[0] > 0:
            return 0.0
        sigma = float(values.quantile(0.75) - values.quantile(0.25)) / _NORMAL_QUARTILES
        threshold = sigma * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
        noise = float(values[values <= threshold].sum()) or max(float(values[-1]), 1e-12)
        signal = float(values[values > threshold].sum())
        return signal / noise / float(values[0])
