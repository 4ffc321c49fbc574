"""Does a layer that turns the residual stream little also cost little? Removal beside block influence on a real model.

    python -m tests.benchmarks.removal [MODEL] [--sequences 12] [--length 256] [--data FILE]

Prints both scores of every layer, the layers whose removal costs most, and Spearman's rank correlation of the two with
a 95 % bootstrap interval over calibration sequences. Scores come from the cache where they have been measured before.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.scoring.context import ScoringContext, Settings, calibration_of, scoring_context
from surgeon.backend.scoring.layer_passes import push_layers
from surgeon.backend.scoring.layer_sequence_losses import sweep_losses
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.plan.draft import draft_of
from surgeon.core.scoring.score_kinds import SweepScore, score_kinds
from surgeon.scores.block_influence import influence
from tests.jobs import job_context, never

RESAMPLES = 2000
Array = np.ndarray[Any, Any]


def ranks(values: Array) -> Array:
    """Return places from 0; no two layers are ever exactly equal."""
    return np.asarray(values.argsort().argsort())


def spearman(one: Array, other: Array) -> float:
    """Return the correlation of the places."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def influences(context: ScoringContext) -> Array:
    """Return block influence, (layers, sequences)."""
    rows: list[list[float]] = [[] for _ in context.keys]
    for one in push_layers(context.runner, context.batches, never, context.room):
        rows[one.layer] += influence(one.hidden_in_BTD, one.hidden_out_BTD).tolist()
    return np.array(rows)


def removals(context: ScoringContext) -> Array:
    """Return the rise of the loss without each layer, (layers, sequences)."""
    kind = score_kinds()["removal"]()
    assert isinstance(kind, SweepScore)
    sequences = kind.sequences(len(context.keys))
    found = dict(
        sweep_losses(
            context.runner, context.batches, sequences, never, lambda *_: ExitStack(), lambda *_: None, context.room
        )
    )
    return np.array([np.subtract(found[f"{layer}"], found["base"]) for layer in range(len(context.keys))])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--data")
    options = parser.parse_args()
    draft = draft_of(read_structure(open_checkpoint(locate_model(options.model))))
    settings = Settings(Path(), data=options.data, sequences=options.sequences, length=options.length)
    with scoring_context(draft, settings, calibration_of(draft, settings), 1024, job_context()) as context:
        turned, cost = influences(context), removals(context)
    print("layer  block influence  removal (nats per token)")
    for layer, (one, other) in enumerate(zip(turned, cost, strict=True)):
        error = other.std(ddof=1) / len(other) ** 0.5
        print(f"{layer:5d}  {one.mean():15.3f}  {other.mean():7.3f} ± {error:.3f}")
    order = cost.mean(1).argsort()[::-1]
    redundant = ranks(turned.mean(1))
    print("costliest to remove:", ", ".join(f"{layer} (influence rank {redundant[layer] + 1})" for layer in order[:6]))
    generator = np.random.default_rng(0)
    draws = (generator.integers(0, options.sequences, options.sequences) for _ in range(RESAMPLES))
    resampled = [spearman(turned[:, draw].mean(1), cost[:, draw].mean(1)) for draw in draws]
    low, high = np.percentile(resampled, [2.5, 97.5])
    print(f"Spearman {spearman(turned.mean(1), cost.mean(1)):+.2f}, 95 % interval {low:+.2f} to {high:+.2f}")


if __name__ == "__main__":
    main()
