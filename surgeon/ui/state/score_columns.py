"""The score columns of the layer table: one per score, filled while its values arrive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from surgeon.core.scoring.score import Score
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.ui.state.formatting import decimals_for

TITLE_CELLS = 8
_FENCE = 3.0
"""How many interquartile ranges beyond the quartiles a value lies that is an outlier (Tukey's outer fence)."""
_MIN_FENCED = 5


@dataclass
class ScoreColumn:
    """One score. `digest` names the weights it was measured on; `pending` holds the layers without a value yet."""

    name: str
    digest: str
    title: str = ""
    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    matrices: dict[str, dict[str, float]] = field(default_factory=dict)
    untrained: frozenset[tuple[str, str]] = frozenset()
    failed: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    data: str = ""
    weights_only: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = score_kinds().get(self.name)
        self.title = (kind.title if kind else self.name)[:TITLE_CELLS]

    def add_value(
        self, key: str, value: object, error: object = None, matrices: Mapping[str, float] | None = None
    ) -> None:
        """Store the value of one layer; what is not a finite number counts as failed."""
        self.pending.discard(key)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            self.failed.add(key)
            return
        self.values[key] = float(value)
        self.failed.discard(key)
        if isinstance(error, (int, float)):
            self.errors[key] = float(error)
        if matrices:
            self.matrices[key] = dict(matrices)
        for name in ("scale", "uncertain"):  # the cached properties
            self.__dict__.pop(name, None)

    @cached_property
    def scale(self) -> ColumnScale:
        """The scale that the values of this column are drawn on."""
        return ColumnScale(self.values)

    @cached_property
    def uncertain(self) -> frozenset[str]:
        """The layers whose rank is within the error: a neighbour in rank is less than two standard errors away."""
        ordered = sorted(self.values, key=lambda key: self.values[key])
        found: set[str] = set()
        for one, other in pairwise(ordered):
            if one in self.errors and other in self.errors:
                error = math.hypot(self.errors[one], self.errors[other])
                if self.values[other] - self.values[one] < 2 * error:
                    found |= {one, other}
        return frozenset(found)


class ColumnScale:
    """Maps a value to the length and colour of its bar, and says how many decimals it is written with."""

    def __init__(self, values: Mapping[str, float]) -> None:
        ordered = sorted(values.values())
        low, high = _fences(ordered)
        inside = [value for value in ordered if low <= value <= high]
        self.low, self.high = (inside[0], inside[-1]) if inside else (0.0, 0.0)
        self.cut = len(inside) < len(ordered)
        self.decimals = decimals_for(ordered)
        last = max(1, len(ordered) - 1)
        self._ranks = {value: index / last for index, value in enumerate(ordered)}

    def length(self, value: float) -> float:
        """Return the bar's length, in [0, 1], linear from the column's lowest value to its highest.

        Outliers do not count: their bars are full or empty, and the others can be told apart.
        """
        if self.high <= self.low:
            return 0.5 if self.low <= value <= self.high else float(value > self.high)
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def beyond(self, value: float) -> bool:
        """Whether a value is an outlier above the others, so that its bar is cut."""
        return value > self.high

    def rank(self, value: float) -> float:
        """Return the value's rank, in [0, 1]. It sets the colour, because outliers hide differences in length."""
        return self._ranks.get(value, 0.5)


def _fences(ordered: Sequence[float]) -> tuple[float, float]:
    """Return the bounds outside of which values are outliers."""
    if len(ordered) < _MIN_FENCED:
        return -math.inf, math.inf
    first, third = ordered[len(ordered) // 4], ordered[len(ordered) * 3 // 4]
    reach = _FENCE * (third - first)
    return first - reach, third + reach


class ScoreColumns:
    """All score columns, in the order in which they were requested."""

    def __init__(self) -> None:
        self.by_name: dict[str, ScoreColumn] = {}

    def __iter__(self) -> Iterator[ScoreColumn]:
        """Yield the columns."""
        return iter(self.by_name.values())

    def open(self, names: Iterable[str], keys: Iterable[str], digest: str, data: str) -> None:
        """Open columns for scores that are about to be measured; older values of the same scores are dropped."""
        keys = set(keys)
        for name in names:
            kind = score_kinds().get(name)
            label = "" if kind is not None and not kind.data else data
            self.by_name[name] = ScoreColumn(name, digest, pending=set(keys), data=label)

    def add_value(
        self, score: str, key: str, value: object, error: object, matrices: Mapping[str, float] | None
    ) -> bool:
        """Store the value of one layer; False where no column is open for the score."""
        column = self.by_name.get(score)
        if column is None:
            return False
        column.add_value(key, value, error, matrices)
        return True

    def close(self) -> None:
        """No more values arrive: nothing is pending any more, and columns without any value go."""
        for column in self:
            column.pending.clear()
        self.by_name = {name: column for name, column in self.by_name.items() if column.values or column.failed}

    def set_score(self, score: Score) -> None:
        """Replace a column by the finished score, whose values are more exact than those of its events."""
        before = self.by_name.get(score.name)
        data = before.data if before else ""
        column = ScoreColumn(
            score.name, score.provenance.draft, data=data, untrained=score.untrained, weights_only=score.weights_only,
            notes=score.notes,
        )  # fmt: skip
        for key, value in score.values.items():
            column.add_value(key, value, score.errors.get(key), score.matrices.get(key))
        column.failed |= before.failed - column.values.keys() if before else set()
        self.by_name[score.name] = column
