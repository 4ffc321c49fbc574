"""Trains what a draft leaves free: its adapters, or else its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.backend.data.examples import Examples, steps_wanted
from surgeon.backend.model.loading import load_model
from surgeon.backend.model.update_rounding import rounding_of
from surgeon.backend.training.trainable_model import open_trainable
from surgeon.backend.training.trainer import train
from surgeon.backend.training.training_request import TrainingRequest, TrainingResult
from surgeon.backend.training.training_run import TrainingReport, TrainingRun, is_stable
from surgeon.backend.training.weight_mask_bits import masked
from surgeon.core.recipe.objective import Objective


def train_step(request: TrainingRequest, state: Path) -> TrainingResult:
    """Train what the draft leaves free: its adapters, or else its weights."""
    objective = request.step.objective.objective  # type: ignore[attr-defined]
    data, held_out = request.split(objective)
    notes = data_warnings(request, objective, data)
    with open_trainable(request) as whole, teacher_model(request, objective) as teacher:
        trainable, mask = masked(whole, request.draft, request.device)
        run = TrainingRun(
            model=trainable.model, parameters=trainable.parameters, step=request.step, objective=objective, data=data,
            held_out=held_out, steps=steps_wanted(request.step, data),
            learning_rate=trainable.learning_rate(request.step), seed=request.seed, device=request.device,
            state=state, job=request.job, teacher=teacher, mask=mask,
            epsilon=getattr(request.step, "epsilon", None),
        )  # fmt: skip
        report = train(run)
        stable = is_stable(report.losses, run.epsilon)
        rounding = rounding_of(request.draft, {} if trainable.adapted else trainable.parameters)
        if rounding.remark:
            notes.append(rounding.remark)
            request.job.warn(f"{request.step.name}: {rounding.remark}")
        found = {"remarks": notes, "stable": stable, "rounding": {"moved": rounding.moved, "kept": rounding.kept}}
        return TrainingResult(trainable.tensors(), {**plain_report(report), **found})


def data_warnings(request: TrainingRequest, objective: Objective, data: Examples) -> list[str]:
    """Say what a person must know of a training on such data; the result's report keeps it."""
    found = [objective.remark(weighted=data.weighted)]
    if data.left_out:
        rows, length = len(data.examples) + data.left_out, request.step.max_length
        found.append(f"{data.left_out} of {rows} rows have no answer within {length} tokens and are left out")
    found.append(data.unread)
    for text in filter(None, found):
        request.job.warn(text)
    return list(filter(None, found))


def plain_report(report: TrainingReport) -> dict[str, Any]:
    """Return a report as plain data."""
    return {
        "losses": report.losses,
        "held_out": {"before": report.before, "after": report.after, "steps": report.held_out},
        "tokens": report.tokens, "seconds": report.seconds,
    }  # fmt: skip


@contextmanager
def teacher_model(request: TrainingRequest, objective: Objective) -> Iterator[nn.Module | None]:
    """Yield the recipe's base, frozen, where the objective looks at a teacher."""
    if not objective.teacher:
        yield None
        return
    teacher = load_model(request.draft.structure.checkpoint, torch.float32, request.device).model
    teacher.requires_grad_(requires_grad=False)
    yield teacher
