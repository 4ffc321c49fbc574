"""Runs the experiments and writes what came of them: `python -m tests.reproduce [--only NAME,…] [--seeds 3]`.

Arms that are in the results already are left out, unless `--again`; what was trained before is taken from the cache.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surgeon.core.checkpoint.atomic_files import write_text
from tests.reproduce.arms import RECIPES, run_arm
from tests.reproduce.curves import decile_curves
from tests.reproduce.experiments import EXPERIMENTS, Experiment
from tests.reproduce.rankings import ila_rankings

RESULTS = RECIPES / "results.json"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of experiments, parted by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="run what is in the results already")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    measurements: dict[str, Callable[[int], Any]] = {"ila_rankings": ila_rankings, "decile_curves": decile_curves}
    for seed in range(options.seeds):
        for experiment in EXPERIMENTS:
            if not wanted or experiment.name in wanted:
                _run(experiment, seed, again=options.again)
    for name, measure in measurements.items():
        if not wanted or name in wanted:
            _keep(("measurements", name), measure(options.seeds))


def _run(experiment: Experiment, seed: int, *, again: bool) -> None:
    arms = list(experiment.arms)
    random.Random(seed).shuffle(arms)  # no arm always runs on a cold machine
    for arm in arms:
        spot = ("experiments", experiment.name, arm.name, str(seed))
        if not again and _found(spot) is not None:
            continue
        print(f"{experiment.name}, {arm.name}, seed {seed}", flush=True)
        start = time.perf_counter()
        _keep(spot, run_arm(arm, seed))
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


def read_results(path: Path = RESULTS) -> dict[str, Any]:
    """Return everything that was found so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _found(spot: tuple[str, ...]) -> Any:
    place: Any = read_results()
    for key in spot:
        place = place.get(key) if place is not None else None
    return place


def _keep(spot: tuple[str, ...], value: Any) -> None:
    with RESULTS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two that run different experiments neither forgets the other's
        _add(spot, value)


def _add(spot: tuple[str, ...], value: Any) -> None:
    results = read_results()
    results["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    place = results
    for key in spot[:-1]:
        place = place.setdefault(key, {})
    place[spot[-1]] = value
    write_text(RESULTS, json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
