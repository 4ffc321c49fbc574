"""What `surgeon plan` tells beforehand against what is measured: memory and seconds of each kind of work.

    python -m tests.benchmarks.planned [--layers 6] [--by block_influence,weight_norm,removal]

Scores a random Llama (bf16) in memory and streamed, each in a process of its own that has nothing else to do, and
prints the ratios of predicted to measured. The seconds that a process takes to import all this are measured beside each
and subtracted; where others use the machine, times tell little: rates are the best of some rounds, and a pass is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from surgeon.architectures.structure_reader import read_structure
from surgeon.client import run_job
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.jobs import CalibrateJob, CalibrateResult
from surgeon.core.plan.draft import draft_of
from surgeon.core.resources.estimates import Estimator
from surgeon.core.resources.machine import Machine
from surgeon.core.scoring.requests import requested_scores
from tests.benchmarks.streaming import score, write_model

IMPORTS = "import tests.jobs, surgeon.backend.scoring.score_runner, surgeon.backend.model.loading"


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--by", default="block_influence,weight_norm,removal")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="surgeon-benchmark-") as place:
        model = Path(place) / "model"
        write_model(model, options.layers)
        draft = draft_of(read_structure(open_checkpoint(model)))
        for name in options.by.split(","):
            for flags in ((), ("--stream",)):
                result = run_job(CalibrateJob(device="cpu"), lambda _: None)
                assert isinstance(result, CalibrateResult)
                machine = msgspec.convert(result.machine, Machine)
                # With next to no memory the plan streams.
                memory = machine.memory_bytes if not flags else 4 * open_checkpoint(model).parameters
                (work,) = Estimator(machine, memory).scores(
                    draft, requested_scores([name]), options.sequences * options.length, ""
                )
                start = time.monotonic()
                subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
                importing = time.monotonic() - start
                _, peak_mb, seconds = score(model, name, options, *flags)
                seconds = max(seconds - importing, 1e-3)
                rows.append({
                    "score": name, "how": "streamed" if flags else "in memory",
                    "predicted_mb": work.memory_bytes / 1e6, "measured_mb": peak_mb,
                    "memory_ratio": work.memory_bytes / 1e6 / peak_mb, "predicted_seconds": work.seconds,
                    "measured_seconds": seconds, "time_ratio": (work.seconds or 0.0) / seconds,
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"load": os.getloadavg(), "rows": len(rows)}))


if __name__ == "__main__":
    main()
