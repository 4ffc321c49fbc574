"""A training step as it goes: the losses so far as a small curve, and what else is watched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from surgeon.core.training_events import training_texts

_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass
class Lesson:
    """The losses that were told of, and the newest event."""

    losses: list[float] = field(default_factory=list)
    newest: Mapping[str, Any] = field(default_factory=dict)

    def take(self, body: Mapping[str, Any]) -> None:
        """Take in a progress event of an optimiser step."""
        if body.get("done") != self.newest.get("done"):
            self.losses.append(float(body["loss"]))
        self.newest = body

    @property
    def tokens_per_second(self) -> float:
        """How fast it goes."""
        return float(self.newest.get("tokens_per_second") or 0)

    @property
    def seconds_left(self) -> float:
        """How long it takes, by its own count."""
        return float(self.newest.get("eta_seconds") or 0)

    @property
    def says(self) -> list[str]:
        """What is watched, in words: the loss first."""
        return training_texts(self.newest)


def curve(values: Sequence[float], width: int) -> str:
    """Return a curve of at most `width` cells; where there are more values, each cell is the mean of its share."""
    finite = list(filter(math.isfinite, values))
    count = min(width, len(finite))
    cuts = [len(finite) * at // count for at in range(count + 1)] if count else []
    cells = [sum(finite[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(cells, default=0.0), max(cells, default=0.0)
    span = (high - low) or 1.0
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((value - low) / span * top)] for value in cells)
