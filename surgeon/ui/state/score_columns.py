"""The scores on the wall: one column per score, filled while its values arrive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from surgeon.core.scoring.score import Score
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.ui.state.formatting import decimals_for

TITLE_CELLS = 8
_OUTLIER = 6


@dataclass
class Column:
    """One score. `digest` names the weights it was measured on; `pending` are the layers that are still to come."""

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
    complete: bool = False

    def __post_init__(self) -> None:
        kind = score_kinds().get(self.name)
        self.title = (kind.title if kind else self.name)[:TITLE_CELLS]

    def put(self, key: str, body: Mapping[str, Any]) -> None:
        """Take in one value as it arrives; what is no finite number has failed."""
        self.pending.discard(key)
        value = body.get("value")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            self.failed.add(key)
            return
        self.values[key] = float(value)
        self.failed.discard(key)
        if isinstance(body.get("error"), (int, float)):
            self.errors[key] = float(body["error"])
        if body.get("matrices"):
            self.matrices[key] = dict(body["matrices"])
        self.__dict__.pop("scale", None)

    @cached_property
    def scale(self) -> Scale:
        """What the values of this column are drawn against."""
        return Scale(self.values)


class Scale:
    """How long a value's bar is, what colour, and how many decimals it is written with."""

    def __init__(self, values: Mapping[str, float]) -> None:
        ordered = sorted(values.values())
        self.low, self.high = (ordered[0], ordered[-1]) if ordered else (0.0, 0.0)
        middle = ordered[len(ordered) // 2] if ordered else 0.0
        self.logarithmic = self.low > 0 and self.high > _OUTLIER * middle
        self.decimals = decimals_for(ordered)
        last = max(1, len(ordered) - 1)
        self._ranks = {value: rank / last for rank, value in enumerate(ordered)}

    def length(self, value: float) -> float:
        """Return the bar's length, in [0, 1]: from the column's lowest value to its highest.

        Logarithmic where one layer towers above the others, so that these can be told apart.
        """
        if self.high <= self.low:
            return 0.5
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def rank(self, value: float) -> float:
        """Return where the value stands among all, in [0, 1]. Its colour: outliers hide differences in length."""
        return self._ranks.get(value, 0.5)


class Board:
    """All columns, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}

    def __iter__(self) -> Any:
        """Yield the columns."""
        return iter(self.columns.values())

    def begin(self, names: Iterable[str], keys: Iterable[str], digest: str, data: str) -> None:
        """Open columns for scores that are about to be measured; an older measurement is dropped."""
        for name in names:
            kind = score_kinds().get(name)
            label = "" if kind is not None and not kind.data else data
            self.columns[name] = Column(name, digest, pending=set(keys), data=label)

    def put(self, body: Mapping[str, Any]) -> str | None:
        """Take in the body of a `scored` event and return the layer's key, or None if nobody asked for it."""
        column, key = self.columns.get(str(body.get("score"))), str(body.get("layer"))
        if column is None:
            return None
        column.put(key, body)
        return key

    def end(self) -> None:
        """Nothing more will come: what is pending never arrives."""
        for column in self.columns.values():
            column.pending.clear()
        self.columns = {name: column for name, column in self.columns.items() if column.values or column.failed}

    def take(self, score: Score) -> None:
        """Put a finished score, which is more exact than what its events said."""
        before = self.columns.get(score.name)
        data = before.data if before else ""
        column = Column(score.name, score.provenance.draft, complete=True, data=data, untrained=score.untrained)
        for key, value in score.values.items():
            column.put(key, {"value": value, "error": score.errors.get(key), "matrices": score.matrices.get(key)})
        column.failed |= before.failed - column.values.keys() if before else set()
        self.columns[score.name] = column
