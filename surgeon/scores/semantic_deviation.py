"""How far from what the model will say the residual stream still is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from surgeon.core.score import ActivationsScore, Collector, Setting
from surgeon.core.semantics import DeviationCollector

if TYPE_CHECKING:
    from surgeon.core.score import Average


class SemanticDeviation(ActivationsScore, frozen=True, kw_only=True):
    """1 minus the cosine of the hidden state entering a layer and the label's semantic basis."""

    name = "semantic_deviation"
    title = "dev"
    asks = "how far from the label is the hidden state that enters the layer"
    cost = "one forward, and one width x width solve"
    paper = "Semantic-based Layer Freezing, arXiv:2406.11753; basis: Vocabulary-Defined Semantics, arXiv:2401.16184"

    state: Annotated[
        Literal["raw", "normed"], msgspec.Meta(description="hidden state as it is, or through the final norm")
    ] = "raw"

    def collector(self, setting: Setting) -> Collector:
        """Measure the deviation before every layer."""
        return _Deviation(setting, normed=self.state == "normed")


class _Deviation(DeviationCollector):
    def value(self, layer: int) -> Average:
        return self.deviation(layer)
