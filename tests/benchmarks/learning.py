"""What does an ALLO learning step cost beside plain DPO? Token selection inside a mask over single weights.

    python -m tests.benchmarks.learning [MODEL] [--data FILE] [--turns 20] [--pairs 4] [--length 128] [--keep 0.1]

Three courses over the same batches, a step of each in turn: DPO in plain torch and transformers (references at hand,
AdamW, clipping), the trainer's `dpo`, and the trainer's `dpo` with `keep_rejected` inside a random mask. Every step is
forward, backward, clipping and update of all weights in float32. Prints medians, and the median over turns of each
ratio, with its quartiles. The bound is 1.15 for ALLO beside either.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn
from torch.nn.functional import log_softmax, logsigmoid

from surgeon.backend.data.examples import Examples, collate, examples_of_step, read_examples
from surgeon.backend.device import choose_device
from surgeon.backend.model.loading import load_model, load_tokenizer
from surgeon.backend.training.accelerator import training_accelerator
from surgeon.backend.training.trainer import _Trainer
from surgeon.backend.training.training_run import TrainingRun
from surgeon.backend.training.weight_mask_bits import WeightMask, pack
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.recipe.objective import parse_objective
from surgeon.operations.train import Train
from tests.jobs import job_context

Step = Callable[[], None]
PAIRS = Path(__file__).parents[2] / "recipes" / "data" / "polite_pairs.jsonl"
WARM_UP = 2
BETA = 0.1
RATE = 1e-5


def plain_step(path: Path, data: Examples, options: argparse.Namespace, device: torch.device) -> Step:
    """Return DPO's step as one writes it without surgeon."""
    model = load_model(open_checkpoint(path), torch.float32, device).model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    turns = WARM_UP + options.turns
    batches = []
    for turn in range(turns):
        numbers = examples_of_step(turn, options.pairs, len(data.examples), 0)
        batch = collate([data.examples[number] for number in numbers], numbers, device)
        with torch.no_grad():
            batches.append((batch, answer_sums(model, batch.tokens_BT, batch.mask_BT, batch.labels_BT)))

    def step() -> None:
        batch, reference_B = batches.pop(0)
        ratios_B = answer_sums(model, batch.tokens_BT, batch.mask_BT, batch.labels_BT) - reference_B
        chosen, rejected = ratios_B.chunk(2)
        (-logsigmoid(BETA * (chosen - rejected)).mean()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def answer_sums(
    model: nn.Module, tokens_BT: torch.Tensor, mask_BT: torch.Tensor, labels_BT: torch.Tensor
) -> torch.Tensor:
    """Return the log-probability of each answer, (B,)."""
    bf16 = tokens_BT.device.type == "cuda"
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        logits_BTV = model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).logits
    every_BTV = log_softmax(logits_BTV.float(), -1)
    found_BT = every_BTV.gather(-1, labels_BT.clamp(min=0)[..., None])[..., 0]
    return (found_BT * (labels_BT >= 0)).sum(1)


def trainer_step(
    path: Path, data: Examples, options: argparse.Namespace, device: torch.device, stack: ExitStack, *, allo: bool
) -> Step:
    """Return the trainer's step, of plain DPO or of ALLO."""
    model = load_model(open_checkpoint(path), torch.float32, device).model
    raw = {"dpo": {"keep_rejected": 0.1}} if allo else "dpo"
    steps = WARM_UP + options.turns
    step = Train(objective=parse_objective(raw), batch_size=options.pairs, steps=steps, max_length=options.length)
    draw = torch.Generator().manual_seed(0)
    bits = {
        name: pack(torch.rand(one.numel(), generator=draw) < options.keep).to(device)
        for name, one in model.named_parameters()
    }
    return training_step(model, step, data, device, stack, WeightMask(bits) if allo else None)


def training_step(
    model: nn.Module, step: Train, data: Examples, device: torch.device, stack: ExitStack,
    mask: WeightMask | None = None,
) -> Step:  # fmt: skip
    """Return the trainer's own step, of all parameters that want gradients."""
    assert step.steps is not None
    free = {name: one for name, one in model.named_parameters() if one.requires_grad}
    run = TrainingRun(
        model=model, parameters=free, step=step, objective=step.objective.objective, data=data, held_out=None,
        steps=step.steps, learning_rate=RATE, seed=0, device=device, state=Path("/nowhere/state.pt"),
        job=job_context(), mask=mask,
    )  # fmt: skip
    accelerator = stack.enter_context(training_accelerator(run.step, run.device, run.precision))
    return _Trainer(run, accelerator)._step


def main() -> None:
    """Time the three in turns and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--data", type=Path, default=PAIRS)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--device")
    options = parser.parse_args()
    path, device = locate_model(options.model), choose_device(options.device)
    data = read_examples(str(options.data.absolute()), Path(), load_tokenizer(path), "pairs", options.length)
    with ExitStack() as stack:
        steps = {
            "plain torch": plain_step(path, data, options, device),
            "dpo": trainer_step(path, data, options, device, stack, allo=False),
            "allo": trainer_step(path, data, options, device, stack, allo=True),
        }
        seconds = timed(steps, options.turns, device)
    for name, found in seconds.items():
        print(f"{name:12} {1000 * median(found):9.1f} ms a step")
    for name, beside in (("allo", "dpo"), ("allo", "plain torch"), ("dpo", "plain torch")):
        ratios = [one / other for one, other in zip(seconds[name], seconds[beside], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        print(f"{name} / {beside}: {middle:.3f}  (quartiles {low:.3f}-{high:.3f}, {len(ratios)} turns)")


def timed(steps: dict[str, Step], turns: int, device: torch.device) -> dict[str, list[float]]:
    """Return seconds by name, one per turn; which goes first changes from turn to turn."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARM_UP + turns):
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            steps[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= WARM_UP:
                found[name].append(time.perf_counter() - start)
    return found


if __name__ == "__main__":
    main()
