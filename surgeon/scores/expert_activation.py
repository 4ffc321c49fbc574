"""How much experts add to the tokens that reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.part_scores import MeanCollector, PartScore, RoutedTokens

if TYPE_CHECKING:
    from torch import Tensor


class ExpertActivation(PartScore, frozen=True, kw_only=True):
    """The mean of gate times Euclidean norm of the expert's output, over the tokens that the router sends to it.

    0 for an expert that no token reached.
    """

    name = "expert_activation"
    title = "REAP"
    asks = "how much an expert adds to the tokens that reach it"
    cost = "one pass, experts twice"
    paper = "REAP the Experts, arXiv:2510.13999, equation 9"
    part = "experts"

    def collector(self) -> MeanCollector:
        """Return what measures one layer."""
        return MeanCollector(of_routing=_saliencies)


def _saliencies(batch: RoutedTokens) -> tuple[Tensor, Tensor]:
    total = (batch.gates_NE.double() * batch.output_norms_NE().double()).sum(0)
    return total, batch.chosen_NE.double().sum(0)
