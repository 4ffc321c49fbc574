"""Where the model turns towards what it will say: the layer that freezing should end at."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from surgeon.core.score import ActivationsScore, Average, Collector, Finished, Setting, average
from surgeon.core.semantics import DeviationCollector

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESAMPLES = 1000


class SemanticGain(ActivationsScore, frozen=True, kw_only=True):
    """How much a layer brings the hidden state nearer to the label: deviation before minus deviation after.

    The paper freezes everything up to the layer of the largest gain. The last layers are left out of that choice: their
    gain is the largest of all in small models, and freezing up to them would freeze everything. `end_of_freezing` in
    the details is the choice, with a bootstrap interval over sequences and the histogram of per-token choices.
    """

    name = "semantic_gain"
    title = "gain"
    asks = "how much nearer to the label does the layer bring the hidden state"
    cost = "one forward, and one width x width solve"
    paper = "Semantic-based Layer Freezing, arXiv:2406.11753; the formula is our reading of it"

    state: Annotated[
        Literal["raw", "normed"], msgspec.Meta(description="hidden state as it is, or through the final norm")
    ] = "raw"
    gain: Annotated[
        Literal["difference", "log"], msgspec.Meta(description="difference of deviations, or of logarithms")
    ] = "difference"
    leave_out: Annotated[int, msgspec.Meta(ge=0, description="last layers that freezing may not end at")] = 1
    train_at_most: Annotated[int | None, msgspec.Meta(ge=1, description="budget: layers that may be trained")] = None

    def collector(self, setting: Setting) -> Collector:
        """Measure the deviation in every latent space."""
        return _Gain(setting, self)


class _Gain(DeviationCollector):
    def __init__(self, setting: Setting, kind: SemanticGain) -> None:
        super().__init__(setting, normed=kind.state == "normed")
        self._kind = kind

    def value(self, layer: int) -> Average:
        return average([sum(tokens) / len(tokens) for tokens in self._gains(layer)])

    def _gains(self, layer: int) -> list[list[float]]:
        scale = math.log if self._kind.gain == "log" else float
        before, after = self.by_token(layer), self.by_token(layer + 1)
        return [[scale(b) - scale(a) for b, a in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]

    def finish(self) -> Finished:
        lowest = max(0, self.layers - 1 - self._kind.train_at_most) if self._kind.train_at_most else 0
        allowed = range(lowest, max(self.layers - self._kind.leave_out, lowest + 1))
        gains = {layer: self._gains(layer) for layer in allowed}
        means = {layer: [sum(tokens) / len(tokens) for tokens in gains[layer]] for layer in allowed}
        chosen = max(allowed, key=lambda layer: sum(means[layer]))
        low, high = _bootstrap(means)
        tokens = {layer: [gain for sequence in gains[layer] for gain in sequence] for layer in allowed}
        votes = Counter(max(allowed, key=lambda layer: tokens[layer][token]) for token in range(len(tokens[chosen])))
        details = {
            **super().finish().details,
            "end_of_freezing": chosen,
            "interval": [low, high],
            "votes": {str(layer): votes[layer] for layer in allowed},
        }
        return Finished(details=details)


def _bootstrap(means: dict[int, list[float]]) -> tuple[int, int]:
    """Return the central 95 % of the chosen layer when sequences are drawn again with replacement."""
    generator = random.Random(0)
    count = len(next(iter(means.values())))
    draws: list[Sequence[int]] = [generator.choices(range(count), k=count) for _ in range(_RESAMPLES)]
    chosen = sorted(max(means, key=lambda layer: sum(means[layer][at] for at in draw)) for draw in draws)
    return chosen[int(0.025 * _RESAMPLES)], chosen[int(0.975 * _RESAMPLES) - 1]
