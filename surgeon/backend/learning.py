"""Carries out learning steps: looks for the result at its address, trains if it is not there, keeps what came of it.

The address is a digest of everything that makes the result: the base's bytes, the draft before the step, the step's
settings, the bytes of its data, the seed. So undo and redo cost nothing, and a replay trains only what has changed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import torch
from safetensors.torch import save_file
from torch import nn

from surgeon.backend.adapters import attached
from surgeon.backend.device import choose_device
from surgeon.backend.live import operated
from surgeon.backend.loading import forget_model, load_model, load_tokenizer
from surgeon.backend.score_cache import content_digest
from surgeon.backend.tensors import DTYPES
from surgeon.backend.trainer import Course, Report, train
from surgeon.backend.training_data import Examples, digest_of, read_examples, steps_wanted
from surgeon.backend.training_rows import source_digest
from surgeon.core.draft import Draft
from surgeon.core.fold import unfrozen
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.learned import REPORT, TENSORS, is_learned, result_directory
from surgeon.core.learning_step import LEARNED, LearningStep, draft_state, result_names
from surgeon.core.objective import Objective
from surgeon.core.plan import Plan, compile_plan
from surgeon.core.recipe import Recipe, Step
from surgeon.errors import ArchitectureError, LearningError
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


def _procedure(order: Order, state: Path) -> Result:
    """Do what a step is: training weights or adapters, learning masks, choosing weights."""
    return train_step(order, state)


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


@dataclass(frozen=True)
class LearningBench:
    """A model ready to be trained, float32, and its trainable parameters by their name in the result.

    dtypes: what the result is rounded to.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    dtypes: Mapping[str, torch.dtype]
    adapted: bool

    def learning_rate(self, step: LearningStep) -> float:
        """Return the step's learning rate, or what is usual for what is trained."""
        return step.learning_rate or step.learning_rates[self.adapted]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what the parameters have become, rounded once to the checkpoint's dtype."""
        return {name: parameter.detach().to(self.dtypes[name]) for name, parameter in self.parameters.items()}


@contextmanager
def opened(order: Order) -> Iterator[LearningBench]:
    """Load the model after the draft in float32 and free what a learning step may change; all else is frozen."""
    draft = order.draft
    plan = compile_plan(draft)
    forget_model()
    _tell_memory(order, plan)
    model = load_model(draft.structure.checkpoint.path, torch.float32, order.device).model
    model.requires_grad_(requires_grad=False)
    with operated(model, unfrozen(draft)) as edited:
        edited.requires_grad_(requires_grad=False)
        if order.step.gradient_checkpointing:
            edited.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if plan.adapters:
            with attached(edited, plan, order.seed) as (peft_model, parameters):
                free = {name: one for name, one in parameters.items() if not _is_gate(one)}
                for parameter in parameters.values():
                    parameter.requires_grad = not _is_gate(parameter)
                yield LearningBench(peft_model, free, dict.fromkeys(free, torch.float32), adapted=True)
            return
        parameters = _free(edited, draft, plan)
        dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in plan.tensors}
        own = dict(result_names(draft))
        yield LearningBench(
            edited, {own[name]: one for name, one in parameters.items()},
            {own[name]: dtypes[name] for name in parameters}, adapted=False,
        )  # fmt: skip


def _is_gate(parameter: nn.Parameter) -> bool:
    return parameter.dim() == 0


def _free(model: nn.Module, draft: Draft, plan: Plan) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen by their name in the checkpoint, and let gradients reach them."""
    live = dict(model.named_parameters())
    found: dict[str, nn.Parameter] = {}
    for tensor in plan.tensors:
        if tensor.name in plan.frozen or DTYPES.get(tensor.dtype) is None or not DTYPES[tensor.dtype].is_floating_point:
            continue
        (name,) = draft.structure.memory_names([tensor.name])
        parameter = live.get(name)
        if parameter is not None and tuple(parameter.shape) == tensor.shape:
            parameter.requires_grad = True
            found[tensor.name] = parameter
        elif not _is_elsewhere(model, name):
            raise ArchitectureError(
                "has another form once it is loaded, so it cannot be trained and stored back", where=tensor.name,
                allowed="freeze it, or attach masked_lora to other matrices and train that", hint="add a freeze step",
            )  # fmt: skip
    return found


def _is_elsewhere(model: nn.Module, name: str) -> bool:
    """Whether a tensor is a buffer, or tied to another parameter."""
    tied = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or {}
    return name in dict(model.named_buffers()) or name in tied


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


def _tell_memory(order: Order, plan: Plan) -> None:
    """Say beforehand what weights, gradients and AdamW's two moments take; refuse what can never fit."""
    frozen = plan.frozen
    trained = sum(tensor.parameters for tensor in plan.tensors if tensor.name not in frozen)
    if plan.adapters:
        trained = sum(sum(adapter.shape) * adapter.lora.rank for adapter in plan.adapters)
    wanted = 4 * plan.parameters + 12 * trained
    text = f"{order.step.name}: weights, gradients and moments take {wanted / 1e9:.2f} GB, activations come on top"
    order.emit("log", {"level": "info", "text": text})
    there = (
        torch.cuda.get_device_properties(order.device).total_memory
        if order.device.type == "cuda"
        else psutil.virtual_memory().total
    )
    if wanted > there:
        raise LearningError(
            f"needs {wanted / 1e9:.1f} GB for weights, gradients and moments; there are {there / 1e9:.1f} GB",
            where=order.step.name, allowed="freeze more layers, or attach masked_lora first: adapters take little",
        )  # fmt: skip
