"""How often experts are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.part_scores import MeanCollector, PartScore, RoutedTokens

if TYPE_CHECKING:
    from torch import Tensor


class ExpertFrequency(PartScore, frozen=True, kw_only=True):
    """The share of all tokens that the router sends to an expert; over a layer they add up to the experts per token."""

    name = "expert_frequency"
    title = "freq"
    asks = "what share of the tokens goes to an expert"
    cost = "one pass"
    paper = "Not All Experts are Equal, arXiv:2402.14800"
    part = "experts"

    def collector(self) -> MeanCollector:
        """Return what measures one layer."""
        return MeanCollector(of_routing=_counts)


def _counts(batch: RoutedTokens) -> tuple[Tensor, Tensor]:
    counts = batch.chosen_NE.double().sum(0)
    return counts, counts.new_full((), batch.chosen_NE.shape[0])
