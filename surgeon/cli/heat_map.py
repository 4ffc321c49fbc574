"""Scores of single matrices as a map: a row for each layer, a column for each role, shaded by rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import fsum

from surgeon.cli.figures import table, value_text
from surgeon.core.score import Score

_SHADES = " ░▒▓█"
_UNTRAINED = "·"


def heat_map(score: Score, keys: Sequence[str], role_of: Callable[[str], str] | None = None) -> str:
    """Write a score's matrices as a table; the darker, the more important among all of them.

    `role_of` names a matrix's column; without it the matrices' own names do. Where a layer has several matrices of one
    role, as experts are, their mean is shown. Matrices that no training reached are marked.
    """
    cells = {
        key: _by_column(score.matrices.get(key, {}), role_of or _own_name) for key in keys if score.matrices.get(key)
    }
    columns = sorted({column for row in cells.values() for column in row})
    order = sorted(value for row in cells.values() for value in row.values())
    untrained = _untrained(score, role_of or _own_name)
    rows = []
    for key, row in cells.items():
        marked = {column: (_UNTRAINED if (key, column) in untrained else _shade(row[column], order)) for column in row}
        rows.append([key, *(f"{marked[one]} {value_text(row[one])}" if one in row else "" for one in columns)])
    title = f"{score.name} of each matrix; darker is more important"
    legend = f", {_UNTRAINED} was not trained" if untrained else ""
    return f"{title}{legend}\n" + table(["layer", *columns], rows)


def _by_column(matrices: dict[str, float], role_of: Callable[[str], str]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for name, value in matrices.items():
        found.setdefault(role_of(name), []).append(value)
    return {column: fsum(values) / len(values) for column, values in found.items()}


def _own_name(name: str) -> str:
    """Return a matrix's name, the part it is of a fused one, but not which expert."""
    stem, bracket, part = name.removesuffix("]").partition("[")
    module = stem.removesuffix(".weight")
    return f"{module}[{part}]" if bracket and not part.isdigit() else module


def _shade(value: float, order: Sequence[float]) -> str:
    """Return a shade by the value's rank among all."""
    return _SHADES[min(order.index(value) * len(_SHADES) // len(order), len(_SHADES) - 1)]


def _untrained(score: Score, role_of: Callable[[str], str]) -> set[tuple[str, str]]:
    """Return layer and column of every matrix that was not trained; a score names them as adapters are named."""
    names = (str(name).split("/", 2) for name in score.details.get("not_trained", ()))
    return {(parts[1], role_of(f"{parts[2]}.weight")) for parts in names if len(parts) == 3}
