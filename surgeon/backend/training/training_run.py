"""What is trained, on what, and how; a batch as an objective sees it; and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from surgeon.backend.data.examples import Batch, Examples
from surgeon.backend.model.losses import label_log_probs
from surgeon.backend.training.accelerator import Precision
from surgeon.core.job_context import JobContext
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.objective import Objective

GradientMask = Callable[[str, torch.Tensor], None]
"""Sets the entries of a parameter's gradient that must not move to zero; told the parameter's name."""


@dataclass(frozen=True)
class TrainingRun:
    """What is trained, on what, and how. `parameters` are the trainable ones by their name in the result.

    reference: whether labels' log-probabilities before the first step are needed.   teacher: gives other logits.
    state: the file that a broken run goes on from.   epsilon: training ends early where the loss is stable to it.
    precision: what products are taken in, by the model and the teacher.
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
    job: JobContext
    precision: Precision = "no"
    teacher: nn.Module | None = None
    mask: GradientMask | None = None
    epsilon: float | None = None


@dataclass
class TrainingReport:
    """What a training run came to. Losses are in the objective's unit, one per optimiser step.

    held_out: number of steps and the held-out figures then, where the step asks for `eval_steps`.
    memory: what was told whenever memory ran out and the parts of a batch became smaller.
    """

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    memory: list[str] = field(default_factory=list)


_WINDOW = 32


def is_stable(losses: Sequence[float], epsilon: float | None) -> bool:
    """Whether the mean loss of the last 32 steps differs by less than `epsilon` from that of the 32 before.

    Looked at every 32 steps: more often, chance would make it so sooner.
    Source: after the definition of epsilon-stable in ILA, arXiv:2410.17875, whose loss is an expectation.
    """
    if epsilon is None or len(losses) < 2 * _WINDOW or len(losses) % _WINDOW:
        return False
    return abs(fmean(losses[-_WINDOW:]) - fmean(losses[-2 * _WINDOW : -_WINDOW])) < epsilon


def parameter_groups(run: TrainingRun) -> list[dict[str, Any]]:
    """Return an optimiser's groups of parameters: weight decay on matrices alone, as is usual."""
    matrices = [one for one in run.parameters.values() if one.dim() > 1]
    others = [one for one in run.parameters.values() if one.dim() <= 1]
    groups = [(matrices, run.step.weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


class BatchOutputs:
    """One batch and what the model made of it; see `surgeon.core.recipe.objective.ObjectiveInputs`."""

    def __init__(self, run: TrainingRun, model: nn.Module, batch: Batch, reference: Mapping[int, torch.Tensor]) -> None:
        """Run nothing yet."""
        self._run, self._model, self._batch, self._reference = run, model, batch, reference
        self.labels_BT, self.weights_BT = batch.labels_BT, batch.weights_BT

    @cached_property
    def logits_BTV(self) -> torch.Tensor:
        """The model's logits."""
        return logits_of(self._model, self._batch)

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
        assert self._run.teacher is not None, "an objective that asks for a teacher says so"
        run = self._run
        products = torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16")
        with torch.no_grad(), products:
            return logits_of(self._run.teacher, self._batch)


def logits_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch, in the dtype the model computes in."""
    found: torch.Tensor = model(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT, use_cache=False).logits
    return found
