"""Runs of adjacent layers, and the layer sequences and losses of models in which one layer at a time is different."""

from __future__ import annotations

from collections.abc import Callable

from surgeon.core.scoring.score import paired_average
from surgeon.core.scoring.score_kinds import LayerCall, LayerSequence, Losses, ScoreSummary

BASE = "base"


def runs(count: int, longest: int) -> list[range]:
    """Return every run of adjacent places up to a length, the short ones first."""
    return [range(first, first + length) for length in range(1, longest + 1) for first in range(count - length + 1)]


def whole(layers: int) -> LayerSequence:
    """Return every layer once, in order."""
    return tuple(LayerCall(layer) for layer in range(layers))


def each_changed(layers: int, change: Callable[[LayerSequence, int], LayerSequence]) -> dict[str, LayerSequence]:
    """Return the whole model, and under its number what each layer's change makes of it."""
    return {BASE: whole(layers), **{f"{at}": change(whole(layers), at) for at in range(layers)}}


def rise_of_each(losses: Losses, layers: int) -> ScoreSummary:
    """Return by how much each layer's change raises the loss, sequence by sequence."""
    return ScoreSummary({at: paired_average(losses[f"{at}"], losses[BASE]) for at in range(layers)})
