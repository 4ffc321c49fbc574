"""A score: one number per layer, higher means more important, and everything that produced it.

A kind of score declares the pass that feeds it and holds the mathematics; the engine in `surgeon/backend` runs each
pass once for all kinds that asked. The protocols here are what passes hand to kinds; torch appears in annotations only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

PYTHON_DOCS = "python_docs"
"""The built-in text: Python's own language reference, which every interpreter carries."""
END_OF_FREEZING = "end_of_freezing"
NOT_TRAINED = "not_trained"


class Average(msgspec.Struct, frozen=True):
    """A mean over calibration sequences, and its standard error; None where one sequence cannot tell."""

    value: float
    error: float | None = None


def average(values: Sequence[float]) -> Average:
    """Return the mean over sequences with its standard error."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Average(mean)
    # stdev fails on what is not finite.
    spread = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return Average(mean, spread / len(values) ** 0.5)


def paired_average(values: Sequence[float], base: Sequence[float]) -> Average:
    """Return the mean difference, paired by sequence, with its standard error."""
    return average([value - before for value, before in zip(values, base, strict=True)])


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What produced a score. Two scores with equal provenance are the same numbers.

    trust_remote_code: true where code that the model brings was run; absent otherwise.
    """

    fingerprint: str
    draft: str = ""
    data: str = ""
    sequences: int = 0
    length: int = 0
    seed: int = 0
    dtype: str = ""
    settings: dict[str, Any] = {}
    trust_remote_code: bool | msgspec.UnsetType = msgspec.UNSET


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A measured score.

    values: by layer key (see `draft.Layer.key`).   errors: standard error of each value, where it is an average.
    matrices: by layer key, then by matrix name within the layer, where the score is made of matrices.
    parts: by layer key, the scores of its experts, neurons or heads in their order, where the score is of parts.
    blocks: by length of a run of adjacent layers, the scores of the runs by first position.
    details: further numbers, by layer key or by name. Where the score itself chooses the layer that freezing ends at,
    END_OF_FREEZING has its position; NOT_TRAINED names adapters of matrices that no training reached.
    notes: what a person should know before trusting it.
    weights_only: whether the model carries trained adapters that were left out.
    measured_on: the data, by the name it was asked for; None for the built-in text. It says nothing of what is in it.
    """

    name: str
    values: dict[str, float]
    errors: dict[str, float] = {}
    matrices: dict[str, dict[str, float]] = {}
    parts: dict[str, list[float]] = {}
    blocks: dict[int, list[float]] = {}
    details: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    measured_on: str | None = None
    weights_only: bool = False
    provenance: Provenance

    @property
    def untrained(self) -> frozenset[tuple[str, str]]:
        """Layer key and name of the matrices that a learned score did not get to know: they rank lowest, by lot."""
        names = (str(name).split("/", 2) for name in self.details.get(NOT_TRAINED, ()))
        return frozenset((parts[1], f"{parts[2]}.weight") for parts in names if len(parts) == 3)

    def ranking(self, keys: Sequence[str]) -> list[str]:
        """Return the keys from least to most important; ties keep the order they came in."""
        return sorted(keys, key=lambda key: self.values[key])
