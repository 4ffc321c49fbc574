"""How strongly neurons of the MLP are active."""

from __future__ import annotations

from surgeon.core.scoring.part_scores import MeanCollector, PartScore


class NeuronActivation(PartScore, frozen=True, kw_only=True):
    """The mean over tokens of the absolute value that enters the down projection."""

    name = "neuron_activation"
    title = "neurons"
    asks = "how large a neuron's activations are on average"
    cost = "one pass"
    paper = "Minitron, arXiv:2407.14679, section 2.2"
    part = "neurons"

    def collector(self) -> MeanCollector:
        """Return what measures one layer."""
        return MeanCollector(lambda batch: batch.inputs_NPW.abs().mean(-1))
