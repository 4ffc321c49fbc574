"""What the model loses without a run of adjacent layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from surgeon.core.scoring.layer_variants import BASE, runs, whole
from surgeon.core.scoring.score import average, paired_average
from surgeon.core.scoring.score_kinds import LayerSequence, Losses, ScoreSummary, SweepScore


class BlockRemoval(SweepScore, frozen=True, kw_only=True):
    """The rise of the loss without a run of layers, for all runs up to a length; in nats per token.

    A layer's score is that of the run of length 1; `block n by block_removal` chooses by the whole run's loss.
    """

    name = "block_removal"
    title = "dNLLn"
    asks = "how much does the loss rise without a run of adjacent layers"
    cost = "about a third of a forward per run"
    paper = "after arXiv:2403.17887, with the loss in place of the angle"

    longest: Annotated[int, msgspec.Meta(ge=1, description="runs of up to this many layers")] = 8

    def sequences(self, layers: int) -> Mapping[str, LayerSequence]:
        """Return the whole model, and the model without each run; something must stay."""
        base = whole(layers)
        return {BASE: base, **{_name(run): base[: run.start] + base[run.stop :] for run in self._runs(layers)}}

    def _runs(self, layers: int) -> list[range]:
        return runs(layers, min(self.longest, layers - 1))

    def values(self, losses: Losses, layers: int) -> ScoreSummary:
        """Return the differences to the whole model, sequence by sequence."""
        rises = {run: paired_average(losses[_name(run)], losses[BASE]) for run in self._runs(layers)}
        blocks: dict[int, list[float]] = {}
        for run, rise in rises.items():
            blocks.setdefault(len(run), []).append(rise.value)
        return ScoreSummary(
            values={run.start: rise for run, rise in rises.items() if len(run) == 1},
            blocks=blocks,
            details={"base_loss": average(losses[BASE]).value},
        )


def _name(run: range) -> str:
    return f"without {run.start}-{run.stop}"
