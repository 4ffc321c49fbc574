"""One score while its pass is running, and what a person should know before trusting it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgeon.core.scoring.score import RUNS, Average, Provenance, Score
from surgeon.core.scoring.score_kinds import ScoreKind, ScoreSummary


@dataclass
class Tally:
    """One score while its pass is running."""

    values: dict[int, Average] = field(default_factory=dict)
    matrices: dict[str, dict[str, float]] = field(default_factory=dict)
    blocks: dict[int, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def finish(self, end: ScoreSummary) -> None:
        """Take in what could be told only at the end."""
        self.values |= end.values
        self.blocks |= {length: list(values) for length, values in end.blocks.items()}
        self.details |= end.details

    def score(self, kind: ScoreKind, keys: Sequence[str], provenance: Provenance) -> Score:
        """Return the score; layers by their `keys`."""
        return Score(
            name=kind.name, values={keys[layer]: one.value for layer, one in sorted(self.values.items())},
            errors={keys[layer]: one.error for layer, one in sorted(self.values.items()) if one.error is not None},
            matrices=self.matrices, blocks=self.blocks, details=self.details, notes=tuple(self._data_warnings()),
            provenance=provenance,
        )  # fmt: skip

    def _data_warnings(self) -> Iterable[str]:
        if RUNS not in self.details:
            return warn_if_too_few_data(self.values)
        runs = {name: Average(*found) for name, found in self.details[RUNS].items()}
        return warn_if_too_few_data(runs, "the lowest runs")


def warn_if_too_few_data(values: Mapping[Any, Average], what: str = "the least important layers") -> Iterable[str]:
    """Warn where the data are too few to tell the two least important layers apart, or the two lowest runs."""
    ranked = sorted((one.value, one.error, layer) for layer, one in values.items() if one.error is not None)
    if len(ranked) > 1:
        (low, low_error, first), (high, high_error, second) = ranked[:2]
        if high - low < 2 * (low_error**2 + high_error**2) ** 0.5:
            yield f"too few data to tell {what}, {first} and {second}, apart: give more sequences"
