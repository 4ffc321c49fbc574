"""How much each sublayer contributes, averaged over the company it may find itself in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated

import msgspec

from surgeon.core.scoring.layer_variants import BASE, runs
from surgeon.core.scoring.score import average
from surgeon.core.scoring.score_kinds import LayerCall, LayerSequence, Losses, ScoreSummary, SweepScore

SUBLAYERS = ("attention", "mlp")


class Shapley(SweepScore, frozen=True, kw_only=True):
    """The mean rise of the loss when a sublayer leaves, alone or after neighbours have left; in nats per token.

    Players are sublayers, attention and MLP of each layer in order. Over all windows of 1 to `longest` adjacent players
    that have a player at an end, its contribution is loss(window gone) - loss(window without it gone): a Shapley value
    whose coalitions are contiguous. A layer's score is the sum of its two; the sublayers' own are kept too.
    """

    name = "shapley"
    title = "shapley"
    asks = "how much does each sublayer contribute, whoever else is gone"
    cost = "about a third of a forward per window: layers x 2 x longest of them"
    paper = "Investigating Layer Importance in LLMs, arXiv:2409.14381, section 3"

    longest: Annotated[int, msgspec.Meta(ge=1, description="windows of up to this many sublayers")] = 3

    def sequences(self, layers: int) -> Mapping[str, LayerSequence]:
        """Return the whole model, and the model with each window of sublayers silenced."""
        return {_name(window): _silenced(window, layers) for window in [range(0), *self._windows(layers)]}

    def _windows(self, layers: int) -> list[range]:
        return runs(layers * len(SUBLAYERS), self.longest)

    def values(self, losses: Losses, layers: int) -> ScoreSummary:
        """Return each layer's sum over its sublayers; `details` has every sublayer's own value."""
        gains: dict[int, list[list[float]]] = {player: [] for player in range(layers * len(SUBLAYERS))}
        for window in self._windows(layers):
            gone = losses[_name(window)]
            gains[window[0]].append(_differences(gone, losses[_name(window[1:])]))
            if len(window) > 1:
                gains[window[-1]].append(_differences(gone, losses[_name(window[:-1])]))
        # By calibration sequence, so that the standard error is that of the sum and not of its parts.
        players = {player: [fmean(gain) for gain in zip(*found, strict=True)] for player, found in gains.items()}
        attention, mlp = ([players[2 * layer + part] for layer in range(layers)] for part in range(2))
        values = {
            layer: average([sum(both) for both in zip(*pair, strict=True)])
            for layer, pair in enumerate(zip(attention, mlp, strict=True))
        }
        details = {
            "attention": [fmean(gain) for gain in attention],
            "mlp": [fmean(gain) for gain in mlp],
        }
        return ScoreSummary(values=values, details=details)


def _differences(after: Sequence[float], before: Sequence[float]) -> list[float]:
    return [value - base for value, base in zip(after, before, strict=True)]


def _name(window: range) -> str:
    return f"silent {window.start}-{window.stop}" if window else BASE


def _silenced(window: range, layers: int) -> LayerSequence:
    return tuple(
        LayerCall(layer, frozenset(kind for part, kind in enumerate(SUBLAYERS) if 2 * layer + part in window))
        for layer in range(layers)
    )
