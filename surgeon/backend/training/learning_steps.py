"""Carries out learning steps: looks for the result at its address, trains if it is not there, keeps what came of it.

The address is a digest of everything that makes the result: the base's bytes, the draft before the step, the step's
settings, the bytes of its data, the seed. So undo and redo cost nothing, and a replay trains only what has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import save_file

from surgeon.backend.device import choose_device
from surgeon.backend.distributed import run_on_all_ranks
from surgeon.backend.model.fit import require_fit
from surgeon.backend.open_base import open_base
from surgeon.backend.out_of_memory import explain_out_of_memory
from surgeon.backend.training.result_cache_key import result_cache_key
from surgeon.backend.training.result_store import cache_advice, keep, require_place
from surgeon.backend.training.resume_state import remove_abandoned
from surgeon.backend.training.training_request import TrainingRequest, TrainingResult
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.checkpoint.file_system import Lock, try_lock
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_means import refuse_quantised
from surgeon.core.plan.learned_results import REPORT, TENSORS, is_learned, result_directory
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.learning_step import LEARNED, LearningStep
from surgeon.core.recipe.recipe import Recipe, Step, recipe_from_builtins, recipe_to_builtins

_WAIT_SECONDS = 0.2


def learn(draft: Draft, step: Step, recipe: Recipe, job: JobContext) -> Step:
    """Carry out a learning step unless its result is there; return the step with the result's address.

    `recipe` holds the steps before it, resolved.
    """
    assert isinstance(step.operation, LearningStep)
    files = FileStamps(*draft.checkpoints)
    request = TrainingRequest(
        draft, step.operation, recipe.data, job.root, recipe.seed,
        choose_device(job.device), job,
    )  # fmt: skip
    address = result_cache_key(request)
    if draft.structure.quantisation is None:  # of those more is said below
        require_fit(draft.structure.checkpoint)
    if is_learned(address):
        job.log(f"{step.operation.name}: the result {address} is here already")
    else:
        refuse_quantised(draft.structure, "training")
        with _alone(address, request) as state:
            if not is_learned(address):
                require_place(state.parent, step.operation, draft)
                with (
                    explain_out_of_memory(request.step, adapted=draft.adapted),
                    run_on_all_ranks(_call(step, recipe, job, state)),
                ):
                    result = carry_out(request, state)
                files.check()
                _keep(address, result, request)
    return msgspec.structs.replace(step, resolved={**(step.resolved or {}), LEARNED: (address,)})


def _call(step: Step, recipe: Recipe, job: JobContext, state: Path) -> dict[str, Any]:
    """Return what another process needs to know to train along."""
    whole = msgspec.structs.replace(recipe, steps=(*recipe.steps, step))
    return {"recipe": recipe_to_builtins(whole), "root": str(job.root), "device": job.device, "state": str(state)}


def join_training(call: Mapping[str, Any]) -> None:
    """Take part in a learning step that another process leads and keeps the result of."""
    recipe = recipe_from_builtins(call["recipe"])
    job = JobContext(lambda event: None, lambda: False, Path(call["root"]), call["device"])
    *before, step = recipe.steps
    assert isinstance(step.operation, LearningStep)
    request = TrainingRequest(
        fold(open_base(recipe, "recipe", job.root), before), step.operation, recipe.data, job.root,
        recipe.seed, choose_device(job.device), job,
    )  # fmt: skip
    carry_out(request, Path(call["state"]))


@contextmanager
def _alone(address: str, request: TrainingRequest) -> Iterator[Path]:
    """Yield the file of a run's state; of two processes that want the same result one waits for the other.

    The state goes once the result is there, and stays where it is not.
    """
    place = result_directory(address).with_suffix(".state")
    with cache_advice():
        handle = _locked(place, request)
    try:
        for old, nbytes in remove_abandoned(place.parent):
            text = f"{old.name} is of a run that was broken off and forgotten: removed, {nbytes / 1e6:.1f} MB"
            request.job.log(text)
        yield place / "state.pt"
        shutil.rmtree(place, ignore_errors=True)
    finally:
        with suppress(OSError):  # empty where it failed before anything was saved
            place.rmdir()
        os.close(handle)


def _locked(place: Path, request: TrainingRequest) -> int:
    """Return a handle that holds the lock on a directory, made if it is not there."""
    told = False
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # removed in between
        try:
            lock = try_lock(handle)
            if lock is Lock.UNSUPPORTED:
                request.job.warn(f"{place.parent} has no locks: of two processes that learn the same, both train")
            if lock is not Lock.TAKEN and os.path.samestat(os.fstat(handle), place.stat()):
                for broken in place.glob("*.partial") if lock is Lock.OURS else ():
                    broken.unlink(missing_ok=True)
                return handle
        except FileNotFoundError:
            lock = Lock.OURS  # whoever held it has finished and removed it in between
        except OSError:
            os.close(handle)
            raise
        os.close(handle)
        if lock is Lock.TAKEN:
            if not told:
                request.job.warn("another process is learning the same: waiting for it")
            told = True
            time.sleep(_WAIT_SECONDS)
        request.job.stop_if_cancelled()


def _keep(address: str, result: TrainingResult, request: TrainingRequest) -> None:
    def write(directory: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in result.tensors.items()}
        save_file(tensors, directory / TENSORS)
        settings = msgspec.to_builtins(request.step, enc_hook=lambda value: value.plain)
        report = {"step": {request.step.name: settings}, **result.report}
        (directory / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")

    keep(address, write, request.job)


PROCEDURES: Mapping[str, str] = {
    "train": "surgeon.backend.training.finetuning:train_step",
    "learn_masks": "surgeon.backend.training.lora_gates:learn_masks",
    "mask_weights": "surgeon.backend.training.weight_mask_selection:mask_weights",
}
"""What carries out each learning step, by the operation's name: (request, file of its state) -> TrainingResult."""


def carry_out(request: TrainingRequest, state: Path) -> TrainingResult:
    """Do what a step is: training weights or adapters, learning masks, choosing weights."""
    module, _, name = PROCEDURES[request.step.name].partition(":")
    carry_out: Callable[[TrainingRequest, Path], TrainingResult] = getattr(import_module(module), name)
    return carry_out(request, state)
