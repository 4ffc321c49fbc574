"""How much an adapter changes its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import AdapterScore

if TYPE_CHECKING:
    from torch import Tensor


class AdapterNorm(AdapterScore, frozen=True, kw_only=True):
    """Frobenius norm of what an adapter adds, as a share of its weight's: `||s B A|| / ||W||`."""

    name = "adapter_norm"
    title = "lora"
    asks = "how much does a trained adapter change its weight"
    cost = "reads the adapted weights once"
    paper = ""

    def matrix(self, weight: Tensor, b_OR: Tensor, a_RI: Tensor) -> float:
        """Return the share, in float64; of the product only (rank, rank) matrices are formed."""
        b, a = b_OR.double(), a_RI.double()
        squared = float(((b.T @ b) * (a @ a.T)).sum())
        norm = float(weight.double().norm())
        return max(squared, 0.0) ** 0.5 / norm if norm else 0.0
