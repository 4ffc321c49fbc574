"""How much attention heads put out."""

from __future__ import annotations

from surgeon.core.scoring.part_scores import MeanCollector, PartScore


class HeadActivation(PartScore, frozen=True, kw_only=True):
    """The mean over tokens of the Euclidean norm of what a group of heads hands to the output projection.

    A group is a key-value head with the query heads that read it: they can only go together.
    """

    name = "head_activation"
    title = "heads"
    asks = "how large what a group of heads puts out is on average"
    cost = "one pass"
    paper = "Minitron, arXiv:2407.14679, section 2.2"
    part = "heads"

    def collector(self) -> MeanCollector:
        """Return what measures one layer."""
        return MeanCollector(lambda batch: batch.inputs_NPW.double().square().sum(-1).sqrt())
