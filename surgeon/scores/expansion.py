"""What the model loses when a layer is run twice."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.core.scoring.layer_variants import each_changed, rise_of_each
from surgeon.core.scoring.score_kinds import LayerSequence, Losses, ScoreSummary, SweepScore


class Expansion(SweepScore, frozen=True, kw_only=True):
    """The rise of the loss when one layer is duplicated in place, in nats per token.

    The copy is not silenced: an identity would never change anything.
    """

    name = "expansion"
    title = "dup"
    asks = "how much does the loss rise when the layer is run twice"
    cost = "about half a forward per layer, and a head each"
    paper = "Llama SLayer, arXiv:2410.02330, section 3"

    def sequences(self, layers: int) -> Mapping[str, LayerSequence]:
        """Return the whole model, and the model with each layer twice."""
        return each_changed(layers, lambda whole, at: whole[: at + 1] + whole[at:])

    def values(self, losses: Losses, layers: int) -> ScoreSummary:
        """Return the differences to the whole model, sequence by sequence."""
        return rise_of_each(losses, layers)
