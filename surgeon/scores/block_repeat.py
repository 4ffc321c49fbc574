"""What the model gains or loses when a run of adjacent layers is run twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec

from surgeon.core.scoring.layer_variants import BASE, runs, whole
from surgeon.core.scoring.score import RUNS, Average, average, paired_average
from surgeon.core.scoring.score_kinds import LayerSequence, Losses, ScoreSummary, SweepScore

_WIDTH = 4
"""Around how many of the best runs the next ones are looked for."""


class BlockRepeat(SweepScore, frozen=True, kw_only=True):
    """The rise of the loss when a run of layers is run twice, the whole run and then the whole run again; in nats.

    Where all runs cost more than `forwards` of the whole model, coarse to fine: first the runs between every n-th
    layer, then runs that begin or end a little off the best ones, until the forwards are used up. A layer's score is
    the least rise of the measured runs that it is in; `run lowest by block_repeat` is the best run.
    """

    name = "block_repeat"
    title = "repeat"
    asks = "how much does the loss rise when a run of adjacent layers is run twice"
    cost = "at most the forwards that are given; all runs take about a third of layers x layers"
    paper = "depth up-scaling by repeated layers: SOLAR 10.7B, arXiv:2312.15166; measured run by run"

    forwards: Annotated[int, msgspec.Meta(ge=8, description="at most so many forwards of the whole model")] = 64

    @property
    def most_forwards(self) -> int:
        """The forwards that are given."""
        return self.forwards

    def sequences(self, layers: int) -> Mapping[str, LayerSequence]:
        """Return the whole model, and the model with each run of the coarsest grid run twice, short runs first."""
        stride = self._stride(layers)
        ends = [*range(0, layers, stride), layers]
        grid = [range(ends[run.start], ends[run.stop]) for run in runs(len(ends) - 1, len(ends) - 1)]
        return {BASE: whole(layers), **{_name(run): _twice(run, layers) for run in grid}}

    def _stride(self, layers: int) -> int:
        """Return the least stride whose grid takes half of the forwards; 1 where all runs are affordable."""
        for stride in range(1, layers):
            starts = range(0, layers, stride)
            cost = sum((layers - start) * (len(starts) - at) for at, start in enumerate(starts)) / layers
            if cost <= self.forwards / (1 if stride == 1 else 2):
                return stride
        return layers

    def more_sequences(self, losses: Losses, layers: int) -> Mapping[str, LayerSequence]:
        """Return the runs beside the best ones that are not known yet, at the coarsest stride that has any."""
        rises = {run: rise.value for run, rise in _rises(losses).items()}
        best = sorted(rises, key=lambda run: rises[run])[:_WIDTH]
        stride = self._stride(layers)
        while stride > 1:
            stride //= 2
            near = dict.fromkeys(run for one in best for run in _beside(one, stride, layers) if run not in rises)
            if near:
                return {_name(run): _twice(run, layers) for run in near}
        return {}

    def values(self, losses: Losses, layers: int) -> ScoreSummary:
        """Return each layer's least rise; `details` has every measured run's, with its standard error."""
        rises = _rises(losses)
        nothing, values = Average(math.inf), {}
        for layer in range(layers):
            around = (rise for run, rise in rises.items() if layer in run)
            values[layer] = min(around, key=lambda rise: rise.value, default=nothing)
        blocks: dict[int, list[float]] = {}
        for run in runs(layers, layers):
            blocks.setdefault(len(run), []).append(rises.get(run, nothing).value)
        told = {f"{run.start}-{run.stop - 1}": [rise.value, rise.error] for run, rise in rises.items()}
        return ScoreSummary(
            values=values,
            blocks={length: row for length, row in blocks.items() if all(map(math.isfinite, row))},
            details={"base_loss": average(losses[BASE]).value, RUNS: told},
        )


def _name(run: range) -> str:
    return f"{run.start}-{run.stop - 1} twice"


def _twice(run: range, layers: int) -> LayerSequence:
    base = whole(layers)
    return base[: run.stop] + base[run.start :]


def _rises(losses: Losses) -> dict[range, Average]:
    found = {}
    for name, values in losses.items():
        if name != BASE:
            first, last = map(int, name.removesuffix(" twice").split("-"))
            found[range(first, last + 1)] = paired_average(values, losses[BASE])
    return found


def _beside(run: range, stride: int, layers: int) -> Iterator[range]:
    for begin in (run.start, run.start - stride, run.start + stride):
        for end in (run.stop, run.stop - stride, run.stop + stride):
            if 0 <= begin < end <= layers:
                yield range(begin, end)
