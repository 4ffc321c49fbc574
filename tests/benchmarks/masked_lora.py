"""Is a training step of masked LoRA as fast as one of plain PEFT LoRA?

    python -m tests.benchmarks.masked_lora [MODEL] [--rounds 15] [--batch 2] [--length 128] [--rank 8] [--device cpu]

Two copies of a model in float32 with LoRA of the same rank on the same modules, one put on by PEFT alone, one by
surgeon, gates frozen as `train` leaves them and trained as `learn_masks` does. Steps are forward, backward and AdamW,
interleaved in one run so that a slower minute strikes all alike. Prints the median of the ratios of neighbouring steps
with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.adapters import attach, without_deprecations
from surgeon.backend.model.loading import load_model
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins

WARM_UP = 2
RESAMPLES = 2000
Step = Callable[[], float]


def plan_of(model: str, rank: int) -> Plan:
    """Return the plan of adapters on every matrix."""
    path = locate_model(model)
    recipe = recipe_from_builtins(
        {"version": 1, "base": {"model": model}, "steps": [{"masked_lora": {"layers": "all", "rank": rank}}]}
    )
    return compile_plan(fold(draft_of(read_structure(open_checkpoint(path))), recipe.steps))


def plain(base: nn.Module, plan: Plan) -> nn.Module:
    """Put the same adapters on by PEFT alone."""
    lora = plan.adapters[0].lora
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none",  # type: ignore[arg-type]
        target_modules=[adapter.module for adapter in plan.adapters],
        fan_in_fan_out=bool(plan.structure.family.transposed), task_type="CAUSAL_LM",
    )  # fmt: skip
    with without_deprecations():
        return get_peft_model(base, config)


def gated(base: nn.Module, plan: Plan, *, gates: bool) -> nn.Module:
    """Put them on with gates; train A and B, or the gates alone."""
    model = attach(base, plan.adapters, 0, transposed=bool(plan.structure.family.transposed))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name and (parameter.dim() == 0) == gates
    return model


def stepping(model: Any, tokens_BT: torch.Tensor) -> Step:
    """Return what makes one training step and tells its seconds."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    cuda = tokens_BT.is_cuda

    def step() -> float:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    plan, device = plan_of(options.model, options.rank), torch.device(options.device)
    path = locate_model(options.model)

    def base() -> nn.Module:
        model: nn.Module = load_model(open_checkpoint(path), torch.float32, device).model
        return model.train()

    tokens_BT = torch.randint(5, 1000, (options.batch, options.length), generator=torch.Generator().manual_seed(0))
    makers: dict[str, Callable[[], nn.Module]] = {
        "plain PEFT": lambda: plain(base(), plan),
        "masked, A and B trained": lambda: gated(base(), plan, gates=False),
        "masked, gates trained": lambda: gated(base(), plan, gates=True),
    }
    steps = {name: stepping(make(), tokens_BT.to(device)) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order, draw = list(steps), random.Random(0)
    for number in range(options.rounds + WARM_UP):
        draw.shuffle(order)
        for name in order:
            once = steps[name]()
            if number >= WARM_UP:
                seconds[name].append(once)
    usual = seconds["plain PEFT"]
    print(f"{len(plan.adapters)} matrices, rank {options.rank}, {options.batch} x {options.length} tokens, {device}")
    for name, taken in seconds.items():
        ratios = [one / other for one, other in zip(taken, usual, strict=True)]
        low, high = interval(ratios)
        middle, ratio = statistics.median(taken), statistics.median(ratios)
        print(f"{name:24}  {middle:.3f} s  ratio {ratio:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
