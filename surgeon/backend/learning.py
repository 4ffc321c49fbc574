"""Carries out learning steps: looks for the result at its address, trains if it is not there, keeps what came of it.

The address is a digest of everything that makes the result: the base's bytes, the draft before the step, the step's
settings, the bytes of its data, the seed. So undo and redo cost nothing, and a replay trains only what has changed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import nn

from surgeon.backend.device import choose_device
from surgeon.backend.learning_bench import opened
from surgeon.backend.loading import load_model, load_tokenizer
from surgeon.backend.score_cache import content_digest
from surgeon.backend.trainer import Course, Report, train
from surgeon.backend.training_data import Examples, digest_of, read_examples, steps_wanted
from surgeon.backend.training_rows import source_digest
from surgeon.core.draft import Draft
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.learned import REPORT, TENSORS, is_learned, result_directory
from surgeon.core.learning_step import LEARNED, LearningStep, draft_state
from surgeon.core.objective import Objective
from surgeon.core.recipe import Recipe, Step
from surgeon.errors import ArchitectureError
from surgeon.export.publish import published

_VERSION = 1
"""Raised whenever the same inputs would give another result."""


@dataclass(frozen=True)
class Order:
    """A learning step to carry out. `named` turns a name of the recipe's data into a file, relative to `root`."""

    draft: Draft
    step: LearningStep
    named: Mapping[str, str]
    root: Path
    seed: int
    device: torch.device
    emit: Emit
    cancelled: IsCancelled

    def source(self, data: str | None) -> str | None:
        """Return the file that a step's data means."""
        return self.named.get(data, data) if data else None

    def examples(self, objective: Objective, data: str | None) -> Examples:
        """Read and tokenise data for an objective."""
        tokenizer = load_tokenizer(self.draft.structure.checkpoint.path)
        return read_examples(self.source(data), self.root, tokenizer, objective.rows, self.step.max_length)

    def split(self, objective: Objective) -> tuple[Examples, Examples | None]:
        """Return the examples to train on and those held out."""
        data, held_out = self.examples(objective, self.step.data), self.step.held_out
        if held_out is None:
            return data, None
        if held_out.endswith("%"):
            return data.split(float(held_out[:-1]) / 100)
        return data, self.examples(objective, held_out)


@dataclass(frozen=True)
class Result:
    """What a procedure came to: tensors by their name in the result, and the report as plain data."""

    tensors: Mapping[str, torch.Tensor]
    report: Mapping[str, Any]


def learn(
    draft: Draft, step: Step, recipe: Recipe, args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled
) -> Step:
    """Carry out a learning step unless its result is there; return the step with the result's address."""
    assert isinstance(step.operation, LearningStep)
    order = Order(
        draft, step.operation, recipe.data, Path(args.get("root", ".")), recipe.seed,
        choose_device(args.get("device")), emit, cancelled,
    )  # fmt: skip
    address = address_of(order)
    if is_learned(address):
        emit("log", {"level": "info", "text": f"{step.operation.name}: the result {address} is here already"})
    else:
        _refuse_quantised(draft)
        with _alone(address) as state:
            if not is_learned(address):
                _keep(address, _procedure(order, state), order)
                shutil.rmtree(state.parent, ignore_errors=True)
    return msgspec.structs.replace(step, resolved={**(step.resolved or {}), LEARNED: (address,)})


def address_of(order: Order) -> str:
    """Return the digest of everything that makes a step's result."""
    settings = msgspec.to_builtins(order.step, enc_hook=lambda value: value.plain)
    sources = {name: settings.pop(name) for name in ("data", "held_out") if name in settings}
    digests = {name: _source_digest(order, value) for name, value in sources.items()}
    made_of = (_VERSION, content_digest(order.draft.structure.checkpoint), draft_state(order.draft),
               order.step.name, settings, digests, order.seed)  # fmt: skip
    return digest_of(made_of)


def _source_digest(order: Order, data: str) -> str:
    if data.endswith("%"):
        return data
    return source_digest(order.source(data), order.root)


@contextmanager
def _alone(address: str) -> Iterator[Path]:
    """Yield the file of a run's state, locked: of two processes that want the same result one waits for the other."""
    place = result_directory(address).with_suffix(".state")
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield place / "state.pt"
    finally:
        os.close(handle)


def _keep(address: str, result: Result, order: Order) -> None:
    with published(result_directory(address)) as directory:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in result.tensors.items()}
        save_file(tensors, directory / TENSORS)
        settings = msgspec.to_builtins(order.step, enc_hook=lambda value: value.plain)
        report = {"step": {order.step.name: settings}, **result.report}
        (directory / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")


PROCEDURES: Mapping[str, str] = {
    "train": "surgeon.backend.learning:train_step",
    "mask_weights": "surgeon.backend.weight_masks:mask_weights",
}
"""What carries out each learning step, by the operation's name: a function (Order, file of its state) -> Result."""


def _procedure(order: Order, state: Path) -> Result:
    """Do what a step is: training weights or adapters, learning masks, choosing weights."""
    module, _, name = PROCEDURES[order.step.name].partition(":")
    carry_out: Callable[[Order, Path], Result] = getattr(import_module(module), name)
    return carry_out(order, state)


def train_step(order: Order, state: Path) -> Result:
    """Train what the draft leaves free: its adapters, or else its weights."""
    objective = order.step.objective.objective  # type: ignore[attr-defined]
    data, held_out = order.split(objective)
    with opened(order) as bench, ExitStack() as stack:
        teacher = stack.enter_context(_teacher(order)) if objective.teacher else None
        course = Course(
            model=bench.model, parameters=bench.parameters, step=order.step, objective=objective, data=data,
            held_out=held_out, steps=steps_wanted(order.step, data), learning_rate=bench.learning_rate(order.step),
            seed=order.seed, device=order.device, state=state, emit=order.emit, cancelled=order.cancelled,
            teacher=teacher,
        )  # fmt: skip
        report = train(course)
        return Result(bench.tensors(), plain_report(report))


def plain_report(report: Report) -> dict[str, Any]:
    """Return a report as plain data."""
    return {
        "losses": report.losses, "held_out": {"before": report.before, "after": report.after},
        "tokens": report.tokens, "seconds": report.seconds,
    }  # fmt: skip


@contextmanager
def _teacher(order: Order) -> Iterator[nn.Module]:
    teacher = load_model(order.draft.structure.checkpoint.path, torch.float32, order.device).model
    teacher.requires_grad_(requires_grad=False)
    yield teacher


def _refuse_quantised(draft: Draft) -> None:
    if draft.structure.checkpoint.config.get("quantization_config"):
        raise ArchitectureError(
            "quantised weights cannot be trained", where="config field quantization_config",
            hint="dequantise the checkpoint first",
        )  # fmt: skip
