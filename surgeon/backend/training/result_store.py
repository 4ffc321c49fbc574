"""Where results of learning steps are kept: told to be of no use before anything is trained, and filled at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.backend.disk_faults import disk_faults
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import is_learned, result_directory
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.training_memory import trained_parameters
from surgeon.errors import ExportError, LearningError
from surgeon.export.atomic_directory import require_space, written_atomically

_PROBE = bytes(4096)
_REMEDY = "make room there, or let SURGEON_CACHE name a directory that can be written"


@contextmanager
def cache_advice() -> Iterator[None]:
    """Say of what cannot be written which directory it is, and how to have another.

    Raises:
        LearningError: something cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise _no_place(": ".join(filter(None, (error.strerror or str(error), error.filename)))) from error


def _no_place(why: str) -> LearningError:
    return LearningError(f"results cannot be kept there: {why}", where=str(cache_directory()), hint=_REMEDY)


def require_place(place: Path, step: LearningStep, draft: Draft) -> None:
    """Refuse to train what could not be kept in the directory `place` afterwards.

    Raises:
        LearningError: it cannot be written, or has less room than the result takes.
    """
    with cache_advice(), tempfile.TemporaryFile(dir=place) as file:
        file.write(_PROBE)
        file.flush()
    try:
        require_space(place, result_bytes(step, draft))
    except ExportError as error:
        raise _no_place(error.what) from error


def result_bytes(step: LearningStep, draft: Draft) -> int:
    """Return about how many bytes the result of a step takes."""
    plan = compile_plan(draft)
    if step.name == "mask_weights":  # a bit for each
        return trained_parameters(step, draft, plan) // 8
    if plan.adapters:
        return 4 * trained_parameters(step, draft, plan)
    return sum(tensor.nbytes for tensor in plan.tensors if tensor.name not in plan.frozen)


def keep(address: str, write: Callable[[Path], None], job: JobContext) -> None:
    """Let `write` fill the directory of the result at `address`; where another process was faster, its result stays.

    Raises:
        LearningError: it cannot be written.
    """
    try:
        with written_atomically(result_directory(address), job.warn) as directory, disk_faults():
            write(directory)
    except ExportError as error:
        if not is_learned(address):
            raise _no_place(error.what) from error
