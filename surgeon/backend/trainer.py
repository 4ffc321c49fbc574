"""The training loop: optimiser steps on `accelerate`, resumable to the bit, one objective.

Everything a step needs follows from the seed and its number, so a run that was killed and goes on from its last saved
state ends with the same weights as one that was not (on a CPU, or with deterministic kernels).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import get_scheduler

from surgeon.backend.training_data import IGNORED, Batch, Examples, collate, examples_of_step
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.learning_step import LearningStep
from surgeon.core.objective import Objective
from surgeon.errors import Cancelled, LearningError

GradientMask = Callable[[str, torch.Tensor], None]
"""Sets the entries of a parameter's gradient that must not move to zero; told the parameter's name."""


@dataclass(frozen=True)
class Course:
    """What is trained, on what, and how. `parameters` are the trainable ones by their name in the result.

    reference: whether labels' log-probabilities before the first step are needed.   teacher: gives other logits.
    state: the file that a broken run goes on from.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    step: LearningStep
    objective: Objective
    data: Examples
    held_out: Examples | None
    steps: int
    learning_rate: float
    seed: int
    device: torch.device
    state: Path
    emit: Emit
    cancelled: IsCancelled
    teacher: nn.Module | None = None
    mask: GradientMask | None = None


@dataclass
class Report:
    """What a course came to. Losses are in the objective's unit, one per optimiser step."""

    losses: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0


class View:
    """One batch and what the model made of it; see `surgeon.core.objective.Seen`."""

    def __init__(self, course: Course, batch: Batch, reference: Mapping[int, torch.Tensor]) -> None:
        """Run nothing yet."""
        self._course, self._batch, self._reference = course, batch, reference
        self.labels_BT, self.weights_BT = batch.labels_BT, batch.weights_BT

    @cached_property
    def logits_BTV(self) -> torch.Tensor:
        """The model's logits."""
        return _logits(self._course.model, self._batch)

    @cached_property
    def log_probs_BT(self) -> torch.Tensor:
        """Log-probabilities of the labels."""
        return label_log_probs(self.logits_BTV, self.labels_BT)

    @cached_property
    def reference_BT(self) -> torch.Tensor:
        """The same before the first step."""
        rows = [self._reference[number] for number in self._batch.examples]
        parts = [row[part] for part in range(len(rows[0])) for row in rows]
        width = self.labels_BT.shape[1]
        padded = [nn.functional.pad(part[:width], (0, max(0, width - len(part)))) for part in parts]
        return torch.stack(padded).to(self.labels_BT.device)

    @cached_property
    def teacher_BTV(self) -> torch.Tensor:
        """The teacher's logits."""
        assert self._course.teacher is not None, "an objective that asks for a teacher says so"
        with torch.no_grad():
            return _logits(self._course.teacher, self._batch)


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT, use_cache=False).logits
    return found


def label_log_probs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each label, float32; 0 where none counts."""
    flat = logits_BTV.float().flatten(0, 1)
    losses = nn.functional.cross_entropy(flat, labels_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view_as(labels_BT)


def train(course: Course) -> Report:
    """Train, and return what came of it. The parameters hold the result.

    Raises:
        LearningError: the loss is not finite. Cancelled: between two steps; the state is saved.
    """
    with _accelerated(course) as accelerator, _deterministic(course):
        return _Run(course, accelerator).run()


@contextmanager
def _accelerated(course: Course) -> Iterator[Accelerator]:
    native = course.device.type == "cuda" and torch.cuda.is_bf16_supported()
    chosen = course.step.mixed_precision or ("bf16" if native else "no")
    AcceleratorState._reset_state(reset_partial_state=False)  # an earlier course may have chosen another precision
    yield Accelerator(mixed_precision=chosen, cpu=course.device.type == "cpu")


@contextmanager
def _deterministic(course: Course) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(course.step.deterministic, warn_only=course.device.type != "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Run:
    """One course under way."""

    def __init__(self, course: Course, accelerator: Accelerator) -> None:
        self.course, self.accelerator = course, accelerator
        self.report = Report()
        optimizer = torch.optim.AdamW(_groups(course), lr=course.learning_rate)
        warmup = math.ceil(course.step.warmup_ratio * course.steps)
        self.scheduler = get_scheduler(course.step.scheduler, optimizer, warmup, course.steps)
        # First of all: it gives the model's forward the precision in which everything here is compared.
        self.model, self.optimizer = accelerator.prepare(course.model, optimizer)
        self.reference = self._references()
        if course.held_out is not None:
            self.report.before = self._evaluate()
        self.done = self._resume()

    def run(self) -> Report:
        course = self.course
        while self.done < course.steps:
            if course.cancelled():
                self._save()
                raise Cancelled
            self._step()
            if self.done % course.step.save_steps == 0 and self.done < course.steps:
                self._save()
        if course.held_out is not None:
            self.report.after = self._evaluate()
        return self.report

    def _step(self) -> None:
        course, start = self.course, time.perf_counter()
        torch.manual_seed(course.seed * 1_000_003 + self.done)
        numbers = examples_of_step(self.done, course.step.batch_size, len(course.data.examples), course.seed)
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        parts = _parts(mine, course.step.gradient_accumulation_steps)
        course.model.train()
        loss, figures, tokens = 0.0, dict[str, float](), 0
        for at, part in enumerate(parts):
            last = at == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                view = self._view(course.data, part)
                value = course.objective.loss(view) * (len(part) / len(mine))
                self.accelerator.backward(value)
            loss += value.item()
            figures = course.objective.figures(view)
            tokens += view.labels_BT.numel()
        self._update(loss)
        self.done += 1
        seconds = time.perf_counter() - start
        self.report.losses.append(loss)
        self.report.tokens += tokens
        self.report.seconds += seconds
        self._tell(loss, figures, tokens / seconds)

    def _update(self, loss: float) -> None:
        course = self.course
        norm = self.accelerator.clip_grad_norm_(list(course.parameters.values()), course.step.max_grad_norm)
        if not math.isfinite(loss) or (norm is not None and not torch.isfinite(norm)):
            raise LearningError(
                f"the loss is {loss} at step {self.done}", where=course.step.name,
                hint="take a smaller learning_rate, or more warm-up; and look for inf or nan in the data's model",
            )  # fmt: skip
        if course.mask is not None:
            for name, parameter in course.parameters.items():
                if parameter.grad is not None:
                    course.mask(name, parameter.grad)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _tell(self, loss: float, figures: Mapping[str, float], rate: float) -> None:
        left = (self.course.steps - self.done) * self.report.seconds / len(self.report.losses)
        held_out = {f"held_out_{name}": value for name, value in self.report.before.items()} if self.done == 1 else {}
        body = {
            "done": self.done, "total": self.course.steps, "unit": "steps", "what": "training", "loss": loss,
            "tokens_per_second": rate, "eta_seconds": left, **figures, **held_out,
        }  # fmt: skip
        self.course.emit("progress", body)

    def _view(self, data: Examples, numbers: Sequence[int]) -> View:
        batch = collate([data.examples[number] for number in numbers], numbers, self.course.device)
        reference = self.reference[id(data)] if self.course.objective.reference else {}
        return View(self.course, batch, reference)

    @torch.no_grad()
    def _references(self) -> dict[int, dict[int, torch.Tensor]]:
        """Return the log-probabilities of all labels that will be needed, by data, by example."""
        course = self.course
        if not course.objective.reference:
            return {}
        course.model.eval()
        size, count = course.step.batch_size, len(course.data.examples)
        seen = {one for step in range(course.steps) for one in examples_of_step(step, size, count, course.seed)}
        found = {id(course.data): self._log_probs(course.data, sorted(seen))}
        if course.held_out is not None:
            found[id(course.held_out)] = self._log_probs(course.held_out, range(len(course.held_out.examples)))
        return found

    def _log_probs(self, data: Examples, numbers: Sequence[int]) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for part in _parts(numbers, math.ceil(len(numbers) / _evaluation_batch(self.course))):
            if self.course.cancelled():
                raise Cancelled
            batch = collate([data.examples[number] for number in part], part, self.course.device)
            values_BT = label_log_probs(_logits(self.course.model, batch), batch.labels_BT)
            # (sequences of an example, T)
            by_example = values_BT.view(-1, len(part), values_BT.shape[1]).transpose(0, 1).cpu()
            found |= dict(zip(part, by_example, strict=True))
        return found

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Return the mean loss and figures over the held-out examples, weighted by examples."""
        course, data = self.course, self.course.held_out
        assert data is not None
        course.model.eval()
        totals: dict[str, float] = {}
        numbers = range(len(data.examples))
        for part in _parts(numbers, math.ceil(len(numbers) / _evaluation_batch(course))):
            if course.cancelled():
                raise Cancelled
            view = self._view(data, part)
            for name, value in {"loss": course.objective.loss(view).item(), **course.objective.figures(view)}.items():
                totals[name] = totals.get(name, 0.0) + value * len(part) / len(numbers)
        return totals

    def _save(self) -> None:
        """Write the state beside it and rename: whoever goes on sees a whole one."""
        if not self.accelerator.is_main_process:
            return
        course = self.course
        state = {
            "done": self.done,
            "parameters": {name: parameter.detach() for name, parameter in course.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "report": vars(self.report),
        }
        course.state.parent.mkdir(parents=True, exist_ok=True)
        partial = course.state.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(course.state)

    def _resume(self) -> int:
        course = self.course
        if not course.state.is_file():
            return 0
        state = torch.load(course.state, map_location=course.device, weights_only=True)
        with torch.no_grad():
            for name, parameter in course.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.report = Report(**state["report"])
        course.emit("log", {"level": "info", "text": f"going on from step {state['done']} of {course.steps}"})
        return int(state["done"])


def _parts(numbers: Sequence[int], count: int) -> list[Sequence[int]]:
    size = math.ceil(len(numbers) / count)
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def _evaluation_batch(course: Course) -> int:
    return max(1, course.step.batch_size // course.step.gradient_accumulation_steps)


def _groups(course: Course) -> list[dict[str, Any]]:
    """Return parameter groups: weight decay on matrices alone, as is usual."""
    matrices = [one for one in course.parameters.values() if one.dim() > 1]
    others = [one for one in course.parameters.values() if one.dim() <= 1]
    groups = [(matrices, course.step.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
