"""What does a frozen prefix save? A training step with it, with as many frozen layers elsewhere, and with none.

    python -m tests.benchmarks.freezing [MODEL] [--frozen 21] [--turns 10] [--batch 4] [--length 128] [--device cpu]

The trainer's own step in float32, `sft` on the instructions of the recipes: forward, backward, clipping and AdamW. With
the prefix the embedding is frozen too. Steps are taken in turns; prints medians, and the median over turns of each
ratio to training everything, with its quartiles. Beside it stands what to expect if a backward pass costs two forwards
and only layers at or above the first trained one are gone through backwards.
"""

from __future__ import annotations

import argparse
import random
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.data.examples import Examples, read_examples
from surgeon.backend.device import choose_device
from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.loading import load_model, load_tokenizer
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.recipe.objective import parse_objective
from surgeon.operations.train import Train
from tests.benchmarks.learning import WARM_UP, Step, timed, training_step

ROWS = Path(__file__).parents[2] / "recipes" / "data" / "instructions.jsonl"


def step_with(
    path: Path, frozen: set[int], data: Examples, options: argparse.Namespace, device: torch.device, stack: ExitStack
) -> Step:
    """Return the trainer's step; where layer 0 is frozen, the embedding is too."""
    model: Any = load_model(open_checkpoint(path), torch.float32, device).model
    layers = layer_list(model, read_structure(open_checkpoint(path)).stack())
    for number in frozen:
        layers[number].requires_grad_(False)
    if 0 in frozen:
        model.get_input_embeddings().requires_grad_(False)
    steps = WARM_UP + options.turns
    step = Train(objective=parse_objective("sft"), batch_size=options.batch, steps=steps, max_length=options.length)
    return training_step(model, step, data, device, stack)


def main() -> None:
    """Time the three in turns and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--frozen", type=int, default=21)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device")
    options = parser.parse_args()
    path, device = locate_model(options.model), choose_device(options.device)
    count = len(read_structure(open_checkpoint(path)).stack().layers)
    anywhere = set(random.Random(0).sample(range(1, count), options.frozen))
    frozen = {"nothing frozen": set[int](), "prefix frozen": set(range(options.frozen)), "others frozen": anywhere}
    data = read_examples(str(ROWS), Path(), load_tokenizer(path), "answers", options.length)
    with ExitStack() as stack:
        steps = {name: step_with(path, layers, data, options, device, stack) for name, layers in frozen.items()}
        seconds = timed(steps, options.turns, device)
    for name, found in seconds.items():
        print(f"{name:15} {1000 * median(found):9.1f} ms a step")
    for name in list(frozen)[1:]:
        ratios = [one / other for one, other in zip(seconds[name], seconds["nothing frozen"], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        # Input gradients from the first trained layer on, weight gradients of the trained ones.
        first = min(set(range(count)) - frozen[name])
        expected = (count + (count - first) + (count - options.frozen)) / (3 * count)
        text = f"{middle:.3f}  (quartiles {low:.3f}-{high:.3f}, {len(ratios)} turns; layers alone: {expected:.2f})"
        print(f"{name} / nothing frozen: {text}")


if __name__ == "__main__":
    main()
