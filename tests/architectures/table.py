"""Prints the results of the last conformance run as a table for the README.

python -m tests.architectures.table
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tests.architectures.conformance import RESULTS

PRUNE = ("prune first", "prune middle", "prune last", "prune several")
EXPAND = ("expand copy", "expand mean", "expand ends")
_MOVES = ("duplicate", "reorder")
_GROUPS = {
    "prune": PRUNE,
    "expand": EXPAND,
    "duplicate, reorder": _MOVES,
    "several in one recipe": ("mixture",),
    "prune_experts": ("prune experts",),
    "narrow, neurons": ("narrow neurons",),
    "narrow, heads": ("narrow heads",),
    "silence": ("silence attention", "silence mlp"),
}
_CUTS = ("prune experts", "narrow neurons", "narrow heads", "silence attention", "silence mlp")
_ABSENT = "no layer of it has"
"""In the reason of a refusal: there is nothing of the kind to cut."""

Outcomes = Mapping[str, list[str]]


def verdict(outcomes: Outcomes, names: Iterable[str]) -> str:
    """Return what a group of operations came to: exact, partly, refused, or wrong."""
    kinds = {outcomes[name][0] for name in names if name in outcomes}
    if kinds & {"wrong", "error"}:
        return "wrong"
    if kinds == {"exact"}:
        return "exact"
    return "partly" if "exact" in kinds else "refused"


def built(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the records of the types that could be built."""
    return {name: record for name, record in results["types"].items() if "unbuildable" not in record}


def cases_of(record: Mapping[str, Any]) -> Outcomes:
    """Return what came of the operations on a type whose config is as transformers saves it."""
    return record["cases"]["as saved"]  # type: ignore[no-any-return]


def reason(outcomes: Outcomes, names: Iterable[str]) -> str:
    """Return the first reason for a refusal, without layer numbers."""
    found = next(
        (outcomes[name][1] for name in (*names, "read") if name in outcomes and outcomes[name][0] == "refused"), ""
    )
    found = re.sub(r"^steps\[\d+\]\.\w+, ", "", found)
    found = re.sub(r"^layer \d+, model_type \S+: cannot be made an identity: ", "", found)
    if any(name in _CUTS for name in names):  # of which tensor differs from type to type, and its numbers say no more
        found = re.sub(r"^(?:model_type \S+|tensor '[^']*'): ", "", found)
        found = re.sub(r"(?:, | of )model_type [\w.-]+", "", found)
        found = re.sub(r"^'[^']*'(?=: belongs)", "a tensor", found)
        found = re.sub(
            r"is \[.*?\], of .*?, (?:or is not known, )?so", "a tensor is not known to be of one part, so", found
        )
    return found.removeprefix("config field ").replace("|", "\\|")


def counts(results: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return, for each group of operations, how many types came to which verdict."""
    found: dict[str, dict[str, int]] = {}
    for group, names in _GROUPS.items():
        tally: dict[str, int] = defaultdict(int)
        for record in built(results).values():
            outcomes = cases_of(record)
            if not any(_ABSENT in "".join(outcomes[name]) for name in names if name in outcomes):
                tally[verdict(outcomes, names)] += 1
        if any(name in cases_of(record) for record in built(results).values() for name in names):
            found[group] = dict(tally)
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    records = built(results)
    versions = results["versions"]
    lines = [
        f"{len(records)} of {len(results['types'])} model types that `AutoModelForCausalLM` knows can be built in "
        f"transformers {versions['transformers']} (torch {versions['torch']}). Each was operated on, exported, "
        "reloaded and compared with the untouched base, bit for bit; cuts within layers with the base of which the "
        "same is masked, to 1e-5.",
        "",
        "| operation | exact | partly refused | refused | wrong |",
        "|---|---:|---:|---:|---:|",
    ]
    for group, tally in counts(results).items():
        figures = " | ".join(str(tally.get(kind, 0)) for kind in ("exact", "partly", "refused", "wrong"))
        lines.append(f"| {group} | {figures} |")
    everything = [
        name
        for name, record in records.items()
        if all(outcome[0] == "exact" for operation, outcome in cases_of(record).items() if operation not in _CUTS)
    ]
    lines += [
        "",
        f"Exact in everything that moves whole layers ({len(everything)}): "
        + ", ".join(f"`{name}`" for name in everything)
        + ".",
        "",
    ]
    lines += ["| refused, wholly or in part | types |", "|---|---|"]
    lines += [
        f"| {group}: {why} | {', '.join(f'`{name}`' for name in names)} |"
        for (group, why), names in _reasons(records).items()
    ]
    return "\n".join(lines)


def _reasons(records: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, record in records.items():
        for group, operations in _GROUPS.items():
            outcomes = cases_of(record)
            why = re.sub(r"\b\d+\b", "…", reason(outcomes, operations))
            if (
                why
                and _ABSENT not in why
                and not any(name in names and same == why for (_, same), names in found.items())
            ):
                found[group, why].append(name)
    return found


if __name__ == "__main__":
    print(table(json.loads(RESULTS.read_text())))
