"""Scores of single matrices as a map: a row for each layer, a column for each role, shaded by rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import fsum

from surgeon.cli.formatting import table, value_text
from surgeon.core.scoring.score import Score

_SHADES = " ░▒▓█"
_UNTRAINED = "·"


def heat_map(score: Score, keys: Sequence[str], role_of: Callable[[str], str] | None = None) -> str:
    """Write a score's matrices as a table; the darker, the more important among all of them.

    `role_of` names a matrix's column; without it the matrices' own names do. Where a layer has several matrices of one
    role, as experts are, their mean is shown. Matrices that no training reached are marked.
    """
    column_of, untrained = role_of or _own_name, score.untrained
    cells, marked = {}, {}
    for key in filter(score.matrices.get, keys):
        known = {name: one for name, one in score.matrices[key].items() if (key, name) not in untrained}
        cells[key] = _by_column(known, column_of)
        # No number: where they rank was drawn by lot.
        marked[key] = {column_of(name): _UNTRAINED for name in score.matrices[key].keys() - known.keys()}
    columns = sorted({column for key in cells for column in (*cells[key], *marked[key])})
    order = sorted(value for row in cells.values() for value in row.values())
    rows = []
    for key, row in cells.items():
        shown = {column: f"{_shade(value, order)} {value_text(value)}" for column, value in row.items()}
        rows.append([key, *((marked[key] | shown).get(column, "") for column in columns)])
    title = f"{score.name} of each matrix; darker is more important"
    legend = f", {_UNTRAINED} was not trained" if any(marked.values()) else ""
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
