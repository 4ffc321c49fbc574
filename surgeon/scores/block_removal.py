"""What the model loses without a run of adjacent layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from surgeon.core.score import Finished, LayerSequence, Losses, SweepScore, Visit, average, paired_average


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
        whole = tuple(Visit(layer) for layer in range(layers))
        runs = {
            f"without {first}+{length}": whole[:first] + whole[first + length :] for length, first in self._runs(layers)
        }
        return {"base": whole, **runs}

    def _runs(self, layers: int) -> list[tuple[int, int]]:
        longest = min(self.longest, layers - 1)
        return [(length, first) for length in range(1, longest + 1) for first in range(layers - length + 1)]

    def values(self, losses: Losses, layers: int) -> Finished:
        """Return the differences to the whole model, sequence by sequence."""
        base = losses["base"]
        rises = {
            (length, first): paired_average(losses[f"without {first}+{length}"], base)
            for length, first in self._runs(layers)
        }
        lengths = sorted({length for length, _ in rises})
        return Finished(
            values={first: rise for (length, first), rise in rises.items() if length == 1},
            blocks={length: [rises[length, first].value for first in range(layers - length + 1)] for length in lengths},
            details={"base_loss": average(base).value},
        )
