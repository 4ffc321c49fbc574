"""Training as it is shown: the losses so far, other metrics, and the report of a finished step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from surgeon.core.events import Progress
from surgeon.core.training_figures import Figures, training_texts
from surgeon.ui.state.formatting import count_text, seconds_text

_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass
class TrainingProgress:
    """The loss of every optimiser step so far, and the latest progress event."""

    losses: list[float] = field(default_factory=list)
    latest: Progress | None = None

    def update(self, event: Progress) -> None:
        """Take the progress event of an optimiser step; a step that is reported twice counts once."""
        if self.latest is None or event.done != self.latest.done:
            loss = event.figures["loss"]
            self.losses.append(math.nan if loss is None else loss)
        self.latest = event

    @property
    def steps_done(self) -> int:
        """How many optimiser steps are done."""
        return 0 if self.latest is None else self.latest.done

    @property
    def steps_total(self) -> int:
        """How many optimiser steps there are."""
        return 0 if self.latest is None else self.latest.total

    @property
    def tokens_per_second(self) -> float:
        """The throughput."""
        return self._figures.get("tokens_per_second") or 0.0

    @property
    def seconds_left(self) -> float:
        """The worker's own estimate."""
        return self._figures.get("eta_seconds") or 0.0

    @property
    def metrics(self) -> list[str]:
        """The latest metrics as text, the loss first."""
        return training_texts(self._figures)

    @property
    def _figures(self) -> Figures:
        return {} if self.latest is None else self.latest.figures


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve of at most `width` cells; where there are more values, each cell is the mean of its share."""
    finite = list(filter(math.isfinite, values))
    count = min(width, len(finite))
    bounds = [len(finite) * cell // count for cell in range(count + 1)] if count else []
    cells = [sum(finite[start:end]) / (end - start) for start, end in pairwise(bounds)]
    low, high = min(cells, default=0.0), max(cells, default=0.0)
    span = (high - low) or 1.0
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((value - low) / span * top)] for value in cells)


def training_report_text(report: Mapping[str, Any]) -> str:
    """Summarise the report of a training step in one line."""
    losses, held_out = report.get("losses") or [], report.get("held_out") or {}
    parts = [f"loss {losses[0]:.3f}→{losses[-1]:.3f} in {len(losses)} steps"] if losses else []
    before, after = held_out.get("before") or {}, held_out.get("after") or {}
    parts += [f"held-out {name} {before[name]:.3f}→{after[name]:.3f}" for name in after if name in before]
    if report.get("tokens"):
        parts.append(f"{count_text(report['tokens'])} tokens in {seconds_text(report.get('seconds') or 0)}")
    return " · ".join(parts)
