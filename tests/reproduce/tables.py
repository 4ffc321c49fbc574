"""Prints what the shipped recipes gave, as Markdown: `python -m tests.reproduce.tables`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from surgeon.core.scoring.ranking_agreement import chance_jaccard
from tests.reproduce.__main__ import read_results
from tests.reproduce.curves import ROLES
from tests.reproduce.experiments import EXPERIMENTS, Experiment, Figure
from tests.reproduce.rankings import overlaps

Run = Mapping[str, Any]
"""What `arms.run_arm` found."""

# Two-sided 95 % quantiles of Student's t by degrees of freedom: a few seeds say little, and this says how little.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


_HEAD = """On SmolLM2-135M-Instruct, CPU ({versions}). Mean over seeds ± half a 95 % interval (Student's t); without ±,
all seeds gave the same, or there was one. *Difference* is to the first arm, seed by seed, with an interval of its own:
arms see the same examples in the same order where they have the same seed and data, and are asked the same held-out
rows. Intervals are over seeds: they say nothing of other rows, data or models, and are not widened for the number of
comparisons. Learning rates differ by what is trained, and were not searched for arm by arm."""
_CURVES_NOTE = """Before and after one fine-tuning on instructions; the loss is that of held-out prose, and the standard
error is over its sequences."""


def tables(results: Mapping[str, Any]) -> str:
    """Return all tables."""
    if not results:
        return "Nothing has been run yet."
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [_HEAD.format(versions=versions)]
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


@dataclass(frozen=True)
class _Column:
    """One figure of every run."""

    title: str
    read: Callable[[Run], float]
    digits: int = 3


def _columns(experiment: Experiment) -> Iterator[_Column]:
    for figure in experiment.figures:
        yield _Column(figure.title, partial(_value, figure))
    if experiment.seconds:
        yield _Column("seconds per step", lambda run: run["seconds"] / len(run["losses"]), digits=2)


def _value(figure: Figure, run: Run) -> float:
    value: float = run["evaluations"][figure.index]["figures"][figure.name]["value"]
    return value


def _experiment(experiment: Experiment, found: Mapping[str, Mapping[str, Run]]) -> str:
    columns = list(_columns(experiment))
    titles = " | ".join(f"{column.title} | difference" for column in columns)
    lines = [f"### `{experiment.name}`: {experiment.asks}", "", f"| arm | seeds | {titles} |",
             f"|---|---:|{'---:|---:|' * len(columns)}"]  # fmt: skip
    first = experiment.arms[0].name
    for arm in experiment.arms:
        runs = found.get(arm.name, {})
        if not runs:
            continue
        cells = []
        for column in columns:
            cells.append(_interval(list(map(column.read, runs.values())), column.digits))
            pairs = [] if arm.name == first else paired(runs, found.get(first, {}))
            cells.append(_interval([column.read(one) - column.read(other) for one, other in pairs], column.digits, "+"))
        lines.append(f"| {arm.name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", experiment.note] if experiment.note else [])])


def paired(runs: Mapping[str, Run], others: Mapping[str, Run]) -> list[tuple[Run, Run]]:
    """Return the runs of two arms, seed by seed, of the seeds that both have."""
    return [(runs[seed], others[seed]) for seed in sorted(runs.keys() & others.keys())]


def _interval(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Return the mean, and half the interval where the values differ at all."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if len(set(values)) == 1:
        return f"{mean:{sign}.{digits}f}"
    half = _T[min(len(values) - 1, 9)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"


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
             "| role | when | " + " | ".join(map(str, range(1, 11))) + " | largest standard error |",
             "|---|---|" + "---:|" * 11]  # fmt: skip
    for role in ROLES:
        for state in ("before", "after"):
            rises = [f"{rise:.3f}" for rise, _, _ in curves[state][role]]
            largest = max(error for _, error, _ in curves[state][role])
            lines.append(f"| `{role}` | {state} | {' | '.join(rises)} | {largest:.3f} |")
    return "\n".join([*lines, "", _CURVES_NOTE])


if __name__ == "__main__":
    print(tables(read_results()))
