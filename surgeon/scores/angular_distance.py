"""How far a run of layers turns the residual stream, for every run at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgeon.core.scoring.score import Average, average
from surgeon.core.scoring.score_kinds import ActivationsContext, ActivationsScore, Collector, ScoreSummary

if TYPE_CHECKING:
    from torch import Tensor


class AngularDistance(ActivationsScore, frozen=True, kw_only=True):
    """arccos of the cosine similarity of input and output at the last token, over pi; in [0, 1].

    A layer's score is that of the run of length 1. Runs of every length are measured too, and `block n by
    angular_distance` chooses by the whole run's distance, as the paper does, not by a sum over layers.
    """

    name = "angular_distance"
    title = "angle"
    asks = "how far does a run of layers turn the last token's residual stream"
    cost = "one forward"
    paper = "The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887, section 3.2"

    def collector(self, setting: ActivationsContext) -> Collector:
        """Keep the last token's hidden state before and after every layer."""
        return _Angles(setting.layers)


class _Angles:
    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._streams: dict[int, list[Tensor]] = {}

    def see(self, layer: int, batch: int, hidden_in_BTD: Tensor, hidden_out_BTD: Tensor) -> None:
        del batch
        if layer == 0:
            self._streams.setdefault(0, []).append(hidden_in_BTD[:, -1].float().cpu())
        self._streams.setdefault(layer + 1, []).append(hidden_out_BTD[:, -1].float().cpu())

    def value(self, layer: int) -> Average:
        return average(self._distances(layer, 1))

    def finish(self) -> ScoreSummary:
        blocks = {
            length: [average(self._distances(first, length)).value for first in range(self._layers - length + 1)]
            for length in range(1, self._layers + 1)
        }
        return ScoreSummary(blocks=blocks)

    def _distances(self, first: int, length: int) -> list[float]:
        import torch

        before_ND, after_ND = torch.cat(self._streams[first]), torch.cat(self._streams[first + length])
        similarity_N = torch.nn.functional.cosine_similarity(before_ND.double(), after_ND.double(), dim=-1)
        distances: list[float] = (similarity_N.clamp(-1, 1).arccos() / math.pi).tolist()
        return distances
