"""Times sweeps against the naive loop of whole forwards, and block influence against a plain forward, side by side.

    python -m tests.benchmarks.sweep [MODEL] [--sequences 4] [--length 256] [--rounds 3]

Prints counted layer forwards (the output head in units of a layer, measured), CPU seconds and ratios. Medians over
rounds in which the two take turns; CPU time, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.losses import losses_of
from surgeon.backend.scoring.context import ScoringContext, Settings, calibration_of, scoring_context
from surgeon.backend.scoring.model_scores import activations_pass, sweep_pass
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.scoring.layer_trie import Trie
from surgeon.core.scoring.score import Provenance
from surgeon.core.scoring.score_kinds import ActivationsScore, LayerSequence, SweepScore, score_kinds

NOTHING = Provenance(fingerprint="")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--by", default="removal")
    options = parser.parse_args()
    draft = draft_of(read_structure(open_checkpoint(locate_model(options.model))))
    settings = Settings(root=Path(), sequences=options.sequences, length=options.length)
    with scoring_context(
        draft, settings, calibration_of(draft, settings), 512, JobContext(lambda event: None, lambda: False)
    ) as context:
        compare_influence(context, options.rounds)
        for name in options.by.split(","):
            compare_sweep(context, draft, name, options.rounds)


def compare_influence(context: ScoringContext, rounds: int) -> None:
    """Block influence against a plain forward over the same tokens."""
    kind = score_kinds()["block_influence"]()
    assert isinstance(kind, ActivationsScore)
    ours, plain = in_turns(
        lambda: activations_pass(context, [kind], NOTHING),
        lambda: [whole(context, tokens) for tokens in context.batches],
        rounds,
    )
    print(f"block_influence {ours:.2f} s, plain forward {plain:.2f} s: ratio {ours / plain:.2f}")


def compare_sweep(context: ScoringContext, draft: Draft, name: str, rounds: int) -> None:
    """A sweep against whole forwards of each layer sequence."""
    kind = score_kinds()[name]()
    assert isinstance(kind, SweepScore)
    layers = len(draft.layers())
    sequences = dict(kind.sequences(layers))
    head = head_in_layers(context)
    counted = (Trie(sequences).layer_forwards + len(sequences) * head) / (
        sum(map(len, sequences.values())) + len(sequences) * head
    )
    ours, naive = in_turns(
        lambda: sweep_pass(context, [kind], NOTHING), lambda: naive_losses(context, sequences), rounds
    )
    print(
        f"{name}: {len(sequences)} sequences, head = {head:.1f} layers, counted {counted:.3f}; "
        f"sweep {ours:.1f} s, naive {naive:.1f} s: ratio {ours / naive:.3f}, "
        f"{ours / naive / counted - 1:+.1%} of the count"
    )


@torch.inference_mode()
def whole(context: ScoringContext, tokens_BT: torch.Tensor) -> list[float]:
    """Return the losses of one whole forward."""
    losses: list[float] = losses_of(context.model(input_ids=tokens_BT, use_cache=False).logits, tokens_BT).tolist()
    return losses


@torch.inference_mode()
def naive_losses(context: ScoringContext, sequences: dict[str, LayerSequence]) -> dict[str, list[float]]:
    """Return what the sweep returns, by running the model once per sequence with its layers rearranged."""
    layers = context.runner.layers
    real = list(layers)
    found = {}
    for name, path in sequences.items():
        del layers[:]
        layers.extend(real[visit.layer] for visit in path)
        count, context.model.config.num_hidden_layers = context.model.config.num_hidden_layers, len(path)  # type: ignore[union-attr]
        found[name] = [loss for tokens_BT in context.batches for loss in whole(context, tokens_BT)]
        context.model.config.num_hidden_layers = count  # type: ignore[union-attr]
    del layers[:]
    layers.extend(real)
    return found


@torch.inference_mode()
def head_in_layers(context: ScoringContext) -> float:
    """Return what the head and the loss cost, in units of one layer."""
    tokens_BT = context.batches[0]
    call = context.runner.record(tokens_BT)
    layer = context.runner.layers[0]
    head, one = in_turns(
        lambda: losses_of(context.runner.logits(tokens_BT, call.hidden_BTD), tokens_BT),
        lambda: context.runner.run(layer, call.hidden_BTD, call.calls[0]),
        9,
    )
    return head / one


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median CPU seconds of each, run in turns after one warm-up."""
    first(), second()
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for times, work in zip(spent, (first, second), strict=True):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    return statistics.median(spent[0]), statistics.median(spent[1])


if __name__ == "__main__":
    main()
