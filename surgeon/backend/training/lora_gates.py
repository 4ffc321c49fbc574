"""Learns the gates of trained adapters: stage 2 of ILA (arXiv:2410.17875). Weights, A and B stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surgeon.backend.data.examples import Examples, steps_wanted
from surgeon.backend.training.finetuning import data_warnings, plain_report, training_run
from surgeon.backend.training.trainable_model import TrainableModel, open_trainable
from surgeon.backend.training.trainer import train
from surgeon.backend.training.training_request import TrainingRequest, TrainingResult
from surgeon.core.plan.learned_results import adapter_tensors
from surgeon.core.recipe.learning_step import objective_of
from surgeon.operations.learn_masks import STEPS, LearnMasks

_NOTHING = 1e-8
"""A B whose entries are all this small adds nothing that a gate could take away: one AdamW step moves them further."""


def learn_masks(request: TrainingRequest, state: Path) -> TrainingResult:
    """Train one gate per adapter; the report says of each its `s`, its gamma = sigmoid(s), and whether it was trained.

    Raises:
        LearningError, DataError: as training does.
    """
    step = request.step
    assert isinstance(step, LearnMasks)
    objective = objective_of(step)
    data, held_out = request.split(objective)
    notes = data_warnings(request, objective, data)
    with open_trainable(request, gates=True, taught=objective.teacher) as trainable:
        before = _started(trainable, step.init)
        run = training_run(request, trainable, data, held_out, state, _steps(step, data))
        report = train(run)
        masks = _masks(trainable, before)
        untrained = sum(not mask["trained"] for mask in masks.values())
        if untrained:
            why = "the B of their adapters is zero, or they start where the sigmoid is flat"
            notes.append(f"{untrained} of {len(masks)} gates did not move: {why}")
            request.job.warn(f"{request.step.name}: {notes[-1]}")
        return TrainingResult(trainable.tensors(), {**plain_report(report), "remarks": notes, "masks": masks})


def _steps(step: LearnMasks, data: Examples) -> int:
    said = any(one is not None for one in (step.steps, step.tokens, step.epochs))
    return steps_wanted(step, data) if said else STEPS


def _started(trainable: TrainableModel, init: float | None) -> dict[str, float]:
    """Give every gate its start value; return what it is."""
    with torch.no_grad():
        for gate in trainable.parameters.values():
            if init is not None:
                gate.fill_(init)
    return {name: gate.item() for name, gate in trainable.parameters.items()}


def _masks(trainable: TrainableModel, before: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return by adapter what became of its gate. One that had nothing to mask never got a gradient."""
    found: dict[str, dict[str, Any]] = {}
    for name, gate in trainable.parameters.items():
        adapter = name.rpartition("/")[0]
        b = trainable.kept[adapter_tensors(adapter)[1]]
        s = gate.item()
        trained = s != before[name] and b.abs().max().item() > _NOTHING
        found[adapter] = {"s": s, "gamma": torch.sigmoid(gate.detach().double()).item(), "trained": trained}
    return found
