"""How large a layer's weights are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import WeightsScore

if TYPE_CHECKING:
    from surgeon.core.scoring.score_kinds import Matrix


class WeightNorm(WeightsScore, frozen=True, kw_only=True):
    """Frobenius norm of each matrix; of a layer, of all its matrices together."""

    decomposes = False
    name = "weight_norm"
    title = "norm"
    asks = "how large are the layer's weights"
    cost = "reads the weights once"
    paper = ""

    def matrix(self, matrix: Matrix) -> float:
        """Return the Frobenius norm, accumulated in float64."""
        return math.sqrt(matrix.squared_norm)

    def layer(self, matrices: Mapping[str, float]) -> float:
        """Return the norm of all of them as one vector."""
        return math.sqrt(math.fsum(norm * norm for norm in matrices.values()))
