"""How many directions an adapter uses of those that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.score_kinds import AdapterScore

if TYPE_CHECKING:
    from torch import Tensor


class AdapterRank(AdapterScore, frozen=True, kw_only=True):
    """Effective rank of what an adapter adds: the exponential of the entropy of its singular values' shares.

    At most its rank; far less where few directions do all the work.
    """

    name = "adapter_rank"
    title = "lorarank"
    asks = "how many directions does a trained adapter use"
    cost = "reads the adapted weights once"
    paper = "Roy and Vetterli, The effective rank, EUSIPCO 2007, definition 2"

    def matrix(self, weight: Tensor, b_OR: Tensor, a_RI: Tensor) -> float:
        """Return the effective rank, in float64; 0 for an adapter that adds nothing."""
        import torch

        del weight
        # The product's singular values are those of the product of the triangular factors.
        values = torch.linalg.svdvals(torch.linalg.qr(b_OR.double()).R @ torch.linalg.qr(a_RI.double().T).R.T)
        total = float(values.sum())
        if not total:
            return 0.0
        return float(torch.special.entr(values / total).sum().exp())
