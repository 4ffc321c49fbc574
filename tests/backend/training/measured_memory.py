"""What one optimiser step takes in memory, told by torch's own profiler: every allocation of the step, summed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.frozen.frozen_weight import FrozenWeight
from surgeon.backend.training.accelerator import training_accelerator
from surgeon.backend.training.finetuning import training_run
from surgeon.backend.training.trainable_model import open_trainable
from surgeon.backend.training.trainer import _Trainer
from surgeon.backend.training.training_request import TrainingRequest
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.learning_step import LearningStep, objective_of
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.core.recipe.training_memory import training_bytes
from tests.jobs import job_context


def foretold_and_measured(model: Path, *steps: dict[str, Any]) -> tuple[int, int]:
    """Return the bytes that the last step is said to take, and those of weights, optimiser and one step at the peak."""
    *before, last = recipe_from_builtins({"version": 1, "base": {"model": str(model)}, "steps": list(steps)}).steps
    draft = fold(draft_of(read_structure(open_checkpoint(model))), before)
    step = last.operation
    assert isinstance(step, LearningStep)
    request = TrainingRequest(draft, step, {}, model.parent, 0, torch.device("cpu"), job_context())
    data, _ = request.split(objective_of(step))
    with open_trainable(request, taught=objective_of(step).teacher) as trainable:
        run = training_run(request, trainable, data, None, model.parent / "state.pt")
        with training_accelerator(step, run.device, run.precision) as accelerator:
            trainer = _Trainer(run, accelerator)
            trainer._step()
            gc.collect()
            held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in _tensors(trainer)}
            peak = _peak_of(trainer)
    return training_bytes(step, draft, compile_plan(draft)), sum(held.values()) + peak


def _tensors(trainer: _Trainer) -> Iterator[torch.Tensor]:
    run = trainer.training
    for model in filter(None, (run.model, run.teacher)):
        for one in (*model.parameters(), *model.buffers()):
            if not isinstance(one.data, FrozenWeight):
                yield one
            elif one.data.stored is not None:
                yield one.data.stored
                yield from one.data._casts.values()
    for state in trainer.optimizer.state.values():
        yield from (one for one in state.values() if isinstance(one, torch.Tensor))


def _peak_of(trainer: _Trainer) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer._step()
    results: Any = profiler.profiler
    changes = [one for one in results.kineto_results.events() if one.name() == "[memory]"]
    now = peak = 0
    for change in sorted(changes, key=lambda one: one.start_ns()):
        now += change.nbytes()
        peak = max(peak, now)
    return peak
