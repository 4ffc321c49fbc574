"""Scores of runs of adjacent layers as a triangle: a row for each first layer, a column for each last one."""

from __future__ import annotations

from surgeon.cli.formatting import value_text
from surgeon.core.scoring.score import RUNS, Score

_SHADES = "█▓▒░·"
_BEST, _UNKNOWN = "◆", " "


def run_triangle(score: Score, layers: int) -> str:
    """Draw the runs that were measured; the darker, the lower their rise among all, and the lowest is marked."""
    rises = {tuple(map(int, name.split("-"))): found[0] for name, found in score.details[RUNS].items()}
    order = sorted(rises.values())
    best = min(rises, key=lambda run: rises[run])
    rows = []
    for first in range(layers):
        marks = ["  " * first]
        for last in range(first, layers):
            rise = rises.get((first, last))
            mark = _UNKNOWN if rise is None else _shade(rise, order)
            marks.append((_BEST if (first, last) == best else mark) * 2)
        rows.append(f"{first:>5}  {''.join(marks)}".rstrip())
    name, (value, error) = f"{best[0]}-{best[1]}", score.details[RUNS][f"{best[0]}-{best[1]}"]
    spread = f" ± {error:.2g}" if error is not None else ""
    title = f"{score.name} of each run, first layer down, last layer across; darker is lower, blank was not measured"
    told = f"{_BEST} {name}: {value_text(value)}{spread}, the lowest of {len(rises)} runs"
    header = " " * 7 + "".join(f"{last:<10}" for last in range(0, layers, 5)).rstrip()
    return "\n".join([title, header, *rows, told])


def _shade(value: float, order: list[float]) -> str:
    """Return a shade by the value's rank among all."""
    return _SHADES[order.index(value) * len(_SHADES) // len(order)]
