"""Which layers a score puts first or last: what a ranked selection comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

from surgeon.core.plan.draft import Layer
from surgeon.core.scoring.score import END_OF_FREEZING, Score
from surgeon.errors import SelectionError


def extreme_layers(order: str, count: str, score: Score, layers: Sequence[Layer], protected: Set[int]) -> Sequence[int]:
    """Return positions by a score; protected ones are never among them. See `selection.Ranked` for order and count.

    Raises:
        SelectionError: the score lacks a layer, or too few layers are free.
    """
    free = [position for position in range(len(layers)) if position not in protected]
    if order == "through":
        return _through(count, score, layers, free)
    number = number_of(count, len(layers))
    if number > len(free):
        raise SelectionError(f"{order} {count} asks for {number} of {len(free)} layers that are not protected")
    values = _finite(score, layers)
    if order == "block":
        return _block(number, score, values, free)
    return sorted(free, key=lambda position: values[position], reverse=order == "highest")[:number]


def _through(which: str, score: Score, layers: Sequence[Layer], free: Sequence[int]) -> Sequence[int]:
    """Choose everything up to one layer: the one that the score itself says, which may know limits, or its extreme."""
    if not free:
        raise SelectionError("all layers are protected")
    values = _finite(score, layers)
    told = score.details.get(END_OF_FREEZING) if which == "highest" else None
    end = told if told is not None else (max if which == "highest" else min)(free, key=lambda at: values[at])
    return [position for position in free if position <= end]


def _block(length: int, score: Score, values: Sequence[float], free: Sequence[int]) -> Sequence[int]:
    starts = [start for start in free if set(range(start, start + length)) <= set(free)]
    if not starts:
        raise SelectionError(f"no {length} adjacent layers are free of protected ones")
    runs = score.blocks.get(length) or [math.fsum(values[at : at + length]) for at in range(len(values) - length + 1)]
    start = min(starts, key=lambda start: runs[start])
    return range(start, start + length)


def _finite(score: Score, layers: Sequence[Layer]) -> list[float]:
    for layer in layers:
        if not math.isfinite(score.values.get(layer.key, math.nan)):
            raise SelectionError(
                f"{score.name} has no value for layer {layer.key}", hint="measure it on the model at this step"
            )
    return [score.values[layer.key] for layer in layers]


def number_of(text: str, layers: int) -> int:
    """Return how many a count such as `4` or `25%` means."""
    return round(int(text[:-1]) / 100 * layers) if text.endswith("%") else int(text)
