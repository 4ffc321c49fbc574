"""What the model loses without a layer."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.core.scoring.layer_variants import each_changed, rise_of_each
from surgeon.core.scoring.score_kinds import LayerSequence, Losses, ScoreSummary, SweepScore


class Removal(SweepScore, frozen=True, kw_only=True):
    """The rise of the loss when one layer is left out, in nats per token."""

    name = "removal"
    title = "dNLL"
    asks = "how much does the loss rise without the layer"
    cost = "about a third of a forward per layer, and a head each"
    paper = "What Matters in Transformers?, arXiv:2406.15786; measured, nothing assumed"

    def sequences(self, layers: int) -> Mapping[str, LayerSequence]:
        """Return the whole model, and the model without each layer."""
        return each_changed(layers, lambda whole, gone: whole[:gone] + whole[gone + 1 :])

    def values(self, losses: Losses, layers: int) -> ScoreSummary:
        """Return the differences to the whole model, sequence by sequence."""
        return rise_of_each(losses, layers)
