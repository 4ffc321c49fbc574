"""How much a layer turns the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.score import Average, average
from surgeon.core.scoring.score_kinds import ActivationsContext, ActivationsScore, Collector, ScoreSummary

if TYPE_CHECKING:
    from torch import Tensor


class BlockInfluence(ActivationsScore, frozen=True, kw_only=True):
    """1 minus the cosine similarity of a layer's input and output, averaged over tokens.

    Position 0 is left out: many models park a massive activation there, which would drown the rest.
    """

    name = "block_influence"
    title = "BI"
    asks = "how much does the layer turn the residual stream"
    cost = "one forward"
    paper = "ShortGPT, arXiv:2403.03853, section 3"
    local = True

    def collector(self, setting: ActivationsContext) -> Collector:
        """Average per sequence, then over sequences."""
        del setting
        return _Influence()


class _Influence:
    def __init__(self) -> None:
        self._seen: dict[int, list[float]] = {}

    def see(self, layer: int, batch: int, hidden_in_BTD: Tensor, hidden_out_BTD: Tensor) -> None:
        del batch
        self._seen.setdefault(layer, []).extend(influence(hidden_in_BTD, hidden_out_BTD).tolist())

    def value(self, layer: int) -> Average:
        return average(self._seen[layer])

    def finish(self) -> ScoreSummary:
        return ScoreSummary()


def influence(hidden_in_BTD: Tensor, hidden_out_BTD: Tensor) -> Tensor:
    """Return 1 minus the mean cosine similarity of each sequence, in [0, 2]; shape (batch,).

    Both tensors are (batch, tokens, width); computed in float32 over positions 1 and later.
    """
    from torch.nn.functional import cosine_similarity

    similarity_BT = cosine_similarity(hidden_in_BTD[:, 1:].float(), hidden_out_BTD[:, 1:].float(), dim=-1)
    return 1 - similarity_BT.mean(dim=1)
