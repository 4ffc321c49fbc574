"""Prints what the shipped recipes gave, as Markdown: `python -m tests.reproduce.tables`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from surgeon.core.overlap import chance_jaccard
from tests.reproduce.__main__ import read_results
from tests.reproduce.curves import ROLES
from tests.reproduce.experiments import EXPERIMENTS, Experiment, Figure
from tests.reproduce.rankings import overlaps

# Two-sided 95 % quantiles of Student's t by degrees of freedom: a few seeds say little, and this says how little.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def tables(results: Mapping[str, Any]) -> str:
    """Return all tables."""
    if not results:
        return "Nothing has been run yet."
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [f"On SmolLM2-135M-Instruct, CPU ({versions}). Mean over seeds ± half a 95 % interval (Student's t)."]
    for experiment in EXPERIMENTS:
        found = results.get("experiments", {}).get(experiment.name)
        if found:
            parts.append(_experiment(experiment, found))
    measured = results.get("measurements", {})
    if "ila_rankings" in measured:
        parts.append(_rankings(measured["ila_rankings"]))
    if "decile_curves" in measured:
        parts.append(_curves(measured["decile_curves"]))
    return "\n\n".join(parts)


def _experiment(experiment: Experiment, found: Mapping[str, Mapping[str, Any]]) -> str:
    titles = [figure.title for figure in experiment.figures] + (["seconds per step"] if experiment.seconds else [])
    lines = [f"### `{experiment.name}`: {experiment.asks}", "", f"| arm | seeds | {' | '.join(titles)} |",
             f"|---|---:|{'---:|' * len(titles)}"]  # fmt: skip
    for arm in experiment.arms:
        runs = found.get(arm.name, {})
        if not runs:
            continue
        cells = [_interval(list(_values(runs.values(), figure))) for figure in experiment.figures]
        if experiment.seconds:
            cells.append(_interval([run["seconds"] / len(run["losses"]) for run in runs.values()], digits=2))
        lines.append(f"| {arm.name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(runs: Any, figure: Figure) -> Iterator[float]:
    for run in runs:
        evaluations = run["evaluations"]
        index = figure.index if figure.index < len(evaluations) else len(evaluations) - 1
        yield evaluations[index]["figures"][figure.name]["value"]


def _interval(values: list[float], digits: int = 3) -> str:
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = _T[min(len(values) - 1, 9)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _rankings(rankings: dict[str, dict[str, float]]) -> str:
    head = "| share | between seeds | between data sets | both differ | chance |"
    lines = ["### `ila`: do rankings of matrices agree?", "", head, "|---|---:|---:|---:|---:|"]
    for share in (0.3, 0.75):
        found = overlaps(rankings, share)
        cells = []
        for label in ("seeds", "data sets", "both"):
            values = [value for kind, value in found if kind == label]
            cells.append(", ".join(f"{value:.2f}" for value in values) or "–")
        count = len(next(iter(rankings.values())))
        chance = chance_jaccard(round(share * count), count)
        lines.append(f"| {share:.0%} | {' | '.join(cells)} | {chance:.2f} |")
    return "\n".join(lines)


def _curves(curves: Mapping[str, Mapping[str, list[list[float]]]]) -> str:
    lines = ["### `small_singular_values`: rise of the loss in nats without each tenth, largest values first", "",
             "| role | when | " + " | ".join(map(str, range(1, 11))) + " |", "|---|---|" + "---:|" * 10]  # fmt: skip
    for role in ROLES:
        for state in ("before", "after"):
            rises = [f"{rise:.3f}" for rise, _, _ in curves[state][role]]
            lines.append(f"| `{role}` | {state} | {' | '.join(rises)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(read_results()))
