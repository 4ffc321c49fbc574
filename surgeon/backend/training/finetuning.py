"""Trains what a draft leaves free: its adapters, or else its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgeon.backend.data.examples import Examples, steps_wanted
from surgeon.backend.model.update_rounding import rounding_of
from surgeon.backend.training.trainable_model import TrainableModel, open_trainable
from surgeon.backend.training.trainer import train
from surgeon.backend.training.training_request import TrainingRequest, TrainingResult
from surgeon.backend.training.training_run import TrainingReport, TrainingRun, is_stable
from surgeon.core.recipe.learning_step import objective_of
from surgeon.core.recipe.objective import Objective


def train_step(request: TrainingRequest, state: Path) -> TrainingResult:
    """Train what the draft leaves free: its adapters, or else its weights."""
    objective = objective_of(request.step)
    data, held_out = request.split(objective)
    notes = data_warnings(request, objective, data)
    with open_trainable(request, taught=objective.teacher) as trainable:
        run = training_run(request, trainable, data, held_out, state)
        report = train(run)
        stable = is_stable(report.losses, run.epsilon)
        rounding = rounding_of(request.draft, {} if trainable.adapted else trainable.parameters)
        if rounding.remark:
            notes.append(rounding.remark)
            request.job.warn(f"{request.step.name}: {rounding.remark}")
        found = {"remarks": notes, "stable": stable, "rounding": {"moved": rounding.moved, "kept": rounding.kept}}
        return TrainingResult(trainable.tensors(), {**plain_report(report), **found})


def training_run(
    request: TrainingRequest, trainable: TrainableModel, data: Examples, held_out: Examples | None, state: Path,
    steps: int | None = None,
) -> TrainingRun:  # fmt: skip
    """Return the run of a request on an opened model; `steps` where the step itself does not say how many."""
    step = request.step
    return TrainingRun(
        model=trainable.model, parameters=trainable.parameters, step=step, objective=objective_of(step),
        data=data, held_out=held_out, steps=steps or steps_wanted(step, data),
        learning_rate=trainable.learning_rate(step), seed=request.seed, device=request.device, state=state,
        job=request.job, precision=request.precision, teacher=trainable.teacher, mask=trainable.mask,
        epsilon=getattr(step, "epsilon", None),
    )  # fmt: skip


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
        "tokens": report.tokens, "seconds": report.seconds, **({"memory": report.memory} if report.memory else {}),
    }  # fmt: skip
