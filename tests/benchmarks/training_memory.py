"""What does a learning step take in memory and time beside plain PEFT on the same bf16 model?

    python -m tests.benchmarks.training_memory [--layers 17] [--batch 2] [--length 128] [--rounds 7] [--only A,B]

Writes a random Llama of about a billion parameters in bf16. Each arm runs two steps in a process of its own, whose peak
resident memory is read from the kernel (VmHWM). Times are ratios of neighbouring steps of two models in one process,
products in the same dtype. Bounds: masked LoRA at most 1.05 of plain PEFT in memory and time, `distill` after pruning
and `dpo` at most 1.15 of `sft` on the same draft in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.training.accelerator import training_accelerator
from surgeon.backend.training.finetuning import training_run
from surgeon.backend.training.trainable_model import open_trainable
from surgeon.backend.training.trainer import _Trainer
from surgeon.backend.training.training_request import TrainingRequest
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.core.recipe.training_memory import training_bytes
from tests.benchmarks.streaming import write_model
from tests.jobs import job_context

RANK, STEPS = 8, 1000
LORA = {"masked_lora": {"layers": "all", "rank": RANK}}
PRUNE = {"prune": {"layers": "9-12"}}
Step = Callable[[], None]


@contextmanager
def peft_step(model: Path, options: argparse.Namespace, dtype: torch.dtype) -> Iterator[Step]:
    """Yield LoRA's step as one writes it with transformers and PEFT."""
    auto: Any = AutoModelForCausalLM
    base = auto.from_pretrained(model, dtype=dtype)
    targets = [name for name, one in base.named_modules() if isinstance(one, torch.nn.Linear) and "head" not in name]
    lora: Any = LoraConfig(r=RANK, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    peft_model: Any = get_peft_model(base, lora).train()
    trained = [one for one in peft_model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    tokens_BT = torch.randint(5, 90, (options.batch, options.length), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        peft_model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield step


@contextmanager
def surgeon_step(
    model: Path, options: argparse.Namespace, precision: str, before: list[dict[str, Any]], **fields: Any
) -> Iterator[Step]:
    """Yield the trainer's step on a draft."""
    settings = {
        "objective": "lm", "data": "text.jsonl", "batch_size": options.batch, "max_length": options.length,
        "steps": STEPS, "mixed_precision": precision, **fields,
    }  # fmt: skip
    plain = {"version": 1, "base": {"model": str(model)}, "steps": [*before, {"train": settings}]}
    *steps, last = recipe_from_builtins(plain).steps
    draft = fold(draft_of(read_structure(open_checkpoint(model))), steps)
    step: Any = last.operation
    request = TrainingRequest(draft, step, {}, model.parent, 0, torch.device("cpu"), job_context())
    data, _ = request.split(step.objective.objective)
    with ExitStack() as stack:
        trainable = stack.enter_context(open_trainable(request, taught=step.objective.objective.teacher))
        run = training_run(request, trainable, data, None, model.parent / "state.pt")
        accelerator = stack.enter_context(training_accelerator(step, run.device, run.precision))
        if options.told:
            print("told", training_bytes(step, draft, compile_plan(draft)))
        yield _Trainer(run, accelerator)._step


def arms(model: Path, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return every arm by its name."""
    few = {"data": "pairs.jsonl", "steps": 4}
    own: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
        "masked_lora bf16": ("bf16", [LORA], {}),
        "masked_lora float32": ("no", [LORA], {}),
        "pruned sft adapters": ("bf16", [PRUNE, LORA], {}),
        "pruned distill adapters": ("bf16", [PRUNE, LORA], {"objective": "distill"}),
        "pruned sft weights": ("bf16", [PRUNE], {}),
        "pruned distill weights": ("bf16", [PRUNE], {"objective": "distill"}),
        "sft on pairs as rows": ("bf16", [LORA], {"batch_size": 2 * options.batch}),
        "dpo": ("bf16", [LORA], {"objective": "dpo", **few}),
    }
    found: dict[str, Callable[[], Any]] = {
        "PEFT bf16": lambda: peft_step(model, options, torch.bfloat16),
        "PEFT float32": lambda: peft_step(model, options, torch.float32),
    }
    for name, (precision, before, fields) in own.items():
        found[name] = lambda p=precision, b=before, f=fields: surgeon_step(model, options, p, b, **f)  # type: ignore[misc]
    return found


def resident(field: str) -> int:
    """Return this process's resident memory in bytes: VmRSS now, or VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(model: Path, name: str, options: argparse.Namespace) -> dict[str, int]:
    """Return the peak of an arm in a process of its own, what that process took before, and what it foretold."""
    program = (
        "import json, sys, argparse; from pathlib import Path; from tests.benchmarks import training_memory as it\n"
        "options = argparse.Namespace(**json.loads(sys.argv[2]))\n"
        "print('before', it.resident('VmRSS'))\n"
        "with it.arms(Path(sys.argv[1]), options)[sys.argv[3]]() as step:\n"
        "    step(); step()\n"
        "    print('peak', it.resident('VmHWM'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model), json.dumps({**vars(options), "told": True}), name],
        check=True, stdout=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip
    words = [line.split() for line in done.stdout.splitlines()]
    return {word[0]: int(word[1]) for word in words if word[0] in ("before", "peak", "told")}


def compare(model: Path, name: str, beside: str, options: argparse.Namespace) -> None:
    """Print the ratio of the times of two arms' steps, interleaved."""
    with arms(model, options)[name]() as ours, arms(model, options)[beside]() as theirs:
        ratios, seconds = [], []
        for number in range(options.rounds + 1):
            taken = {}
            for which in ((ours, theirs), (theirs, ours))[number % 2]:
                start = time.perf_counter()
                which()
                taken[which] = time.perf_counter() - start
            if number:
                ratios.append(taken[ours] / taken[theirs])
                seconds.append(taken[theirs])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"time {name} / {beside}: {middle:.3f} (quartiles {low:.3f}-{high:.3f}; {statistics.median(seconds):.2f} s)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 17), ("batch", 2), ("length", 128), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", help="names of arms, separated by commas")
    options = parser.parse_args()
    options.told = False
    with tempfile.TemporaryDirectory(prefix="surgeon-benchmark-") as place:
        model = Path(place) / "model"
        size = write_model(model, options.layers)
        text = "the quick brown fox jumps over the lazy dog " * (options.length // 40 + 1)
        rows = [{"text": f"{number} {text}"} for number in range(64)]
        (Path(place) / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pairs = [{"prompt": "fox", "chosen": f"{number} {text}", "rejected": f"{text} {number}"} for number in range(8)]
        (Path(place) / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        print(f"{size / 2e6:.0f} M parameters in bf16, {options.batch} x {options.length} tokens, rank {RANK}")
        wanted = options.only.split(",") if options.only else list(arms(model, options))
        peaks = {}
        for name in wanted:
            found = measure(model, name, options)
            peaks[name] = found["peak"]
            told = f"; foretold {found['told'] / 1e6:.0f} MB above it" if "told" in found else ""
            print(f"{name:26} peak {found['peak'] / 1e6:6.0f} MB, {found['before'] / 1e6:.0f} before{told}", flush=True)
        for name, beside in (
            ("masked_lora bf16", "PEFT bf16"), ("masked_lora float32", "PEFT bf16"),
            ("pruned distill adapters", "pruned sft adapters"), ("pruned distill weights", "pruned sft weights"),
            ("dpo", "sft on pairs as rows"),
        ):  # fmt: skip
            if name in peaks and beside in peaks:
                print(f"memory {name} / {beside}: {peaks[name] / peaks[beside]:.3f}")
        for name, beside in (("masked_lora bf16", "PEFT bf16"), ("masked_lora float32", "PEFT float32")):
            if options.rounds and name in wanted and beside in wanted:
                compare(model, name, beside, options)


if __name__ == "__main__":
    main()
