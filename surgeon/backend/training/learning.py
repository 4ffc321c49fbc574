"""Carries out learning steps: looks for the result at its address, trains if it is not there, keeps what came of it.

The address is a digest of everything that makes the result: the base's bytes, the draft before the step, the step's
settings, the bytes of its data, the seed. So undo and redo cost nothing, and a replay trains only what has changed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import nn

from surgeon.backend.data.examples import Examples, read_examples, steps_wanted
from surgeon.backend.device import choose_device
from surgeon.backend.distributed import together
from surgeon.backend.jobs.run import open_base
from surgeon.backend.model.loading import load_model, load_tokenizer
from surgeon.backend.model.rounding import rounding_of
from surgeon.backend.out_of_memory import memory_explained
from surgeon.backend.training.result_address import address_of
from surgeon.backend.training.resume_state import remove_abandoned
from surgeon.backend.training.token_rewards import rewarding_of
from surgeon.backend.training.trainable_model import opened
from surgeon.backend.training.trainer import train
from surgeon.backend.training.training_run import Course, Report, is_stable
from surgeon.backend.training.weight_mask_bits import masked
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import REPORT, TENSORS, is_learned, result_directory
from surgeon.core.recipe.fold import fold
from surgeon.core.recipe.learning_step import LEARNED, LearningStep
from surgeon.core.recipe.objective import Objective
from surgeon.core.recipe.recipe import Recipe, Step, recipe_from_builtins, recipe_to_builtins
from surgeon.errors import ArchitectureError, Cancelled, DataError
from surgeon.export.publish import published

_WAIT_SECONDS = 0.2


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
        rewarding = rewarding_of(objective, self.root, tokenizer, self.device, self.emit, self.cancelled)
        return read_examples(self.source(data), self.root, tokenizer, objective.rows, self.step.max_length, rewarding)

    def split(self, objective: Objective) -> tuple[Examples, Examples | None]:
        """Return the examples to train on and those held out."""
        data, held_out = self.examples(objective, self.step.data), self.step.held_out
        if held_out is None:
            return data, None
        if held_out.endswith("%"):
            return data.split(_share(held_out))
        held = self.examples(objective, held_out)
        if held.weighted != data.weighted:
            raise DataError(
                "has token rewards in one of data and held_out, and in the other none", where=self.step.name,
                hint="give both rewards, or name a rewriter: figures of the two cannot be compared",
            )  # fmt: skip
        return data, held


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100
    except ValueError as error:
        raise DataError(f"{text!r} is no share", where="held_out", allowed="a share such as 5%") from error


@dataclass(frozen=True)
class Result:
    """What a procedure came to: tensors by their name in the result, and the report as plain data."""

    tensors: Mapping[str, torch.Tensor]
    report: Mapping[str, Any]


def learn(
    draft: Draft, step: Step, recipe: Recipe, args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled
) -> Step:
    """Carry out a learning step unless its result is there; return the step with the result's address.

    `recipe` holds the steps before it, resolved.
    """
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
        with _alone(address, order) as state:
            if not is_learned(address):
                with memory_explained(order.step, adapted=draft.adapted), together(_call(step, recipe, args, state)):
                    result = carry_out(order, state)
                _keep(address, result, order)
    return msgspec.structs.replace(step, resolved={**(step.resolved or {}), LEARNED: (address,)})


def _call(step: Step, recipe: Recipe, args: Mapping[str, Any], state: Path) -> dict[str, Any]:
    """Return what another process needs to know to train along."""
    whole = msgspec.structs.replace(recipe, steps=(*recipe.steps, step))
    return {"recipe": recipe_to_builtins(whole), "args": dict(args), "state": str(state)}


def train_along(call: Mapping[str, Any]) -> None:
    """Take part in a learning step that another process leads and keeps the result of."""
    recipe, args = recipe_from_builtins(call["recipe"]), call["args"]
    *before, step = recipe.steps
    assert isinstance(step.operation, LearningStep)
    order = Order(
        fold(open_base(recipe, "recipe"), before), step.operation, recipe.data, Path(args.get("root", ".")),
        recipe.seed, choose_device(args.get("device")), lambda kind, body: None, lambda: False,
    )  # fmt: skip
    carry_out(order, Path(call["state"]))


@contextmanager
def _alone(address: str, order: Order) -> Iterator[Path]:
    """Yield the file of a run's state; of two processes that want the same result one waits for the other.

    The state goes once the result is there, and stays where it is not.
    """
    place = result_directory(address).with_suffix(".state")
    handle = _locked(place, order)
    try:
        for old, nbytes in remove_abandoned(place.parent):
            text = f"{old.name} is of a run that was broken off and forgotten: removed, {nbytes / 1e6:.1f} MB"
            order.emit("log", {"level": "info", "text": text})
        yield place / "state.pt"
        shutil.rmtree(place, ignore_errors=True)
    finally:
        with suppress(OSError):  # empty where it failed before anything was saved
            place.rmdir()
        os.close(handle)


def _locked(place: Path, order: Order) -> int:
    """Return a handle that holds the lock on a directory, made if it is not there."""
    told = False
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # removed in between
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), place.stat()):
                return handle
        except BlockingIOError:
            if not told:
                order.emit("log", {"level": "warning", "text": "another process is learning the same: waiting for it"})
            told = True
            time.sleep(_WAIT_SECONDS)
        except FileNotFoundError:
            pass  # whoever held it has finished and removed it in between
        os.close(handle)
        if order.cancelled():
            raise Cancelled


def _keep(address: str, result: Result, order: Order) -> None:
    place = result_directory(address)
    # Whoever was killed while writing it held the lock that is held here.
    shutil.rmtree(place.with_name(place.name + ".partial"), ignore_errors=True)
    with published(place) as directory:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in result.tensors.items()}
        save_file(tensors, directory / TENSORS)
        settings = msgspec.to_builtins(order.step, enc_hook=lambda value: value.plain)
        report = {"step": {order.step.name: settings}, **result.report}
        (directory / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")


PROCEDURES: Mapping[str, str] = {
    "train": "surgeon.backend.training.learning:train_step",
    "learn_masks": "surgeon.backend.training.gates:learn_masks",
    "mask_weights": "surgeon.backend.training.weight_masks:mask_weights",
}
"""What carries out each learning step, by the operation's name: a function (Order, file of its state) -> Result."""


def carry_out(order: Order, state: Path) -> Result:
    """Do what a step is: training weights or adapters, learning masks, choosing weights."""
    module, _, name = PROCEDURES[order.step.name].partition(":")
    carry_out: Callable[[Order, Path], Result] = getattr(import_module(module), name)
    return carry_out(order, state)


def train_step(order: Order, state: Path) -> Result:
    """Train what the draft leaves free: its adapters, or else its weights."""
    objective = order.step.objective.objective  # type: ignore[attr-defined]
    data, held_out = order.split(objective)
    notes = remarks(order, objective, data)
    with opened(order) as whole, teaching(order, objective) as teacher:
        bench, mask = masked(whole, order.draft, order.device)
        course = Course(
            model=bench.model, parameters=bench.parameters, step=order.step, objective=objective, data=data,
            held_out=held_out, steps=steps_wanted(order.step, data), learning_rate=bench.learning_rate(order.step),
            seed=order.seed, device=order.device, state=state, emit=order.emit, cancelled=order.cancelled,
            teacher=teacher, mask=mask, epsilon=getattr(order.step, "epsilon", None),
        )  # fmt: skip
        report = train(course)
        stable = is_stable(report.losses, course.epsilon)
        rounding = rounding_of(order.draft, {} if bench.adapted else bench.parameters)
        if rounding.remark:
            notes.append(rounding.remark)
            order.emit("log", {"level": "warning", "text": f"{order.step.name}: {rounding.remark}"})
        found = {"remarks": notes, "stable": stable, "rounding": {"moved": rounding.moved, "kept": rounding.kept}}
        return Result(bench.tensors(), {**plain_report(report), **found})


def remarks(order: Order, objective: Objective, data: Examples) -> list[str]:
    """Say what a person must know of a course on such data; the result's report keeps it."""
    found = [objective.remark(weighted=data.weighted)]
    if data.left_out:
        rows, length = len(data.examples) + data.left_out, order.step.max_length
        found.append(f"{data.left_out} of {rows} rows have no answer within {length} tokens and are left out")
    for text in filter(None, found):
        order.emit("log", {"level": "warning", "text": text})
    return list(filter(None, found))


def plain_report(report: Report) -> dict[str, Any]:
    """Return a report as plain data."""
    return {
        "losses": report.losses,
        "held_out": {"before": report.before, "after": report.after, "steps": report.held_out},
        "tokens": report.tokens, "seconds": report.seconds,
    }  # fmt: skip


@contextmanager
def teaching(order: Order, objective: Objective) -> Iterator[nn.Module | None]:
    """Yield the recipe's base, frozen, where the objective looks at a teacher."""
    if not objective.teacher:
        yield None
        return
    teacher = load_model(order.draft.structure.checkpoint.path, torch.float32, order.device).model
    teacher.requires_grad_(requires_grad=False)
    yield teacher


def _refuse_quantised(draft: Draft) -> None:
    if draft.structure.checkpoint.config.get("quantization_config"):
        raise ArchitectureError(
            "quantised weights cannot be trained", where="config field quantization_config",
            hint="dequantise the checkpoint first",
        )  # fmt: skip
