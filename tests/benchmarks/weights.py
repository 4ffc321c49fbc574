"""Times all scores of weights together against WeightWatcher's analyze(), and compares what both measure.

    python -m tests.benchmarks.weights [MODEL] [--weightwatcher PYTHON] [--rounds 1]

Each runs in a process of its own on one thread. CPU seconds of the measurement itself and of the whole process with
its imports; then the largest relative difference of stable ranks and of norms. PYTHON is an interpreter that has
weightwatcher, torch and transformers. Without it only ours is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from surgeon.core.checkpoint.model_location import locate_model

OURS = """
import json, sys, time
from pathlib import Path
from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.scoring.context import Settings
from surgeon.backend.scoring.score_runner import measure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.scoring.score import WeightsScore, score_kinds
names = [name for name, kind in score_kinds().items() if issubclass(kind, WeightsScore)]
draft = draft_of(read_structure(open_checkpoint(Path(sys.argv[1]))))
start = time.process_time()
scores = measure(draft, names, Settings(Path()), lambda *_: None, lambda: False)
spent = time.process_time() - start
found = {score.name: {f"{key}.{name.removesuffix('.weight')}": value for key, row in score.matrices.items()
                      for name, value in row.items()} for score in scores}
print(json.dumps({"spent": spent, "names": names, "rank": found["stable_rank"], "norm": found["weight_norm"]}))
"""
THEIRS = """
import json, sys, time, warnings, logging
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from transformers import AutoModelForCausalLM
import weightwatcher
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
watcher = weightwatcher.WeightWatcher(model=model)
start = time.process_time()
details = watcher.analyze()
spent = time.process_time() - start
named = ((row["longname"].partition("layers.")[2], row) for row in details.to_dict("records"))
rows = {name: row for name, row in named if name}
print(json.dumps({"spent": spent, "rank": {key: float(row["stable_rank"]) for key, row in rows.items()},
                  "norm": {key: float(row["norm"]) for key, row in rows.items()}}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--weightwatcher", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    model = str(locate_model(options.model))
    for _ in range(options.rounds):
        ours, our_process = timed(sys.executable, OURS, model)
        what = f"{len(ours['names'])} scores of {len(ours['norm'])} matrices"
        print(f"surgeon, {what}: {ours['spent']:.1f} CPU-s, with imports {our_process:.1f}", flush=True)
        if options.weightwatcher:
            theirs, their_process = timed(options.weightwatcher, THEIRS, model)
            print(f"weightwatcher.analyze(): {theirs['spent']:.1f} CPU-s, with imports and loading {their_process:.1f}")
            print(f"ratio {ours['spent'] / theirs['spent']:.2f}; of whole processes {our_process / their_process:.2f}")
            compare(ours, theirs)


def timed(python: str, program: str, model: str) -> tuple[dict[str, Any], float]:
    """Return what a program prints as its last line, and the CPU seconds of its process."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SURGEON_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [python, "-c", program, model], env=environment, check=True, capture_output=True, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.strip().splitlines()[-1]), spent


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Print how far the two are apart; their norm is the squared one."""
    shared = sorted(set(ours["rank"]) & set(theirs["rank"]))
    ranks = max(abs(ours["rank"][name] / theirs["rank"][name] - 1) for name in shared)
    norms = max(abs(ours["norm"][name] ** 2 / theirs["norm"][name] - 1) for name in shared)
    print(f"{len(shared)} matrices of both: stable rank within {ranks:.1e}, squared norm within {norms:.1e}")


if __name__ == "__main__":
    main()
