"""Times the score of repeated runs against whole forwards, one for each pair of layers.

    python -m tests.benchmarks.block_repeat [MODEL] [--sequences 2] [--length 128] [--forwards 64]

Measures all runs, and as many as the forwards allow, and beside each, in turn, whole forwards of the base: CPU seconds
and ratios, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.scoring.context import Settings, calibration_of, scoring_context
from surgeon.backend.scoring.sweep_pass import sweep_pass
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import draft_of
from surgeon.core.scoring.score import RUNS, Provenance
from surgeon.core.scoring.score_kinds import SweepScore, score_kinds
from tests.benchmarks.sweep import whole

_BESIDE = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--forwards", type=int, nargs="+", default=[64, 10_000])
    options = parser.parse_args()
    draft = draft_of(read_structure(open_checkpoint(locate_model(options.model))))
    layers = len(draft.layers())
    pairs = layers * (layers - 1) // 2
    settings = Settings(root=Path(), sequences=options.sequences, length=options.length)
    job = JobContext(lambda event: None, lambda: False)
    with scoring_context(draft, settings, calibration_of(draft, settings), 512, job) as context:
        for forwards in options.forwards:
            kind = score_kinds()["block_repeat"](forwards=forwards)
            assert isinstance(kind, SweepScore)
            start = time.process_time()
            for _ in range(_BESIDE):
                [whole(context, tokens_BT) for tokens_BT in context.batches]
            one = (time.process_time() - start) / _BESIDE
            start = time.process_time()
            (score,) = sweep_pass(context, [kind], Provenance(fingerprint="")).values()
            spent = time.process_time() - start
            runs = score.details[RUNS]
            best = min(runs, key=lambda name: runs[name][0])
            print(
                f"block_repeat(forwards={forwards}): {len(runs)} runs in {spent:.0f} s, {spent / one:.0f} forwards of "
                f"{one:.2f} s; {pairs} whole forwards: {pairs * one:.0f} s, ratio {spent / one / pairs:.3f}; best run "
                f"{best}: {runs[best][0]:+.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
