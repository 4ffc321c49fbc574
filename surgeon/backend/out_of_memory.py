"""Running out of memory while something is learned: said with what to change, not with a trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from surgeon.backend.distributed import world_size
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.errors import LearningError

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "_status_alloc_failed")
_SHORTEST = 64


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, on whatever device, says that memory has run out."""
    torch: Any = sys.modules.get("torch")  # not imported for a job that has not needed it
    of_torch = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return (
        of_torch
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS))
    )


@contextmanager
def explain_out_of_memory(step: LearningStep, *, adapted: bool) -> Iterator[None]:
    """Turn running out of memory into a LearningError that says which settings of the step take less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise LearningError(
            "there is not enough memory for it", where=step.name, allowed="; ".join(_ways(step, adapted)),
            hint="change one of these and run it again",
        ) from error  # fmt: skip


def _ways(step: LearningStep, adapted: bool) -> Iterator[str]:
    """Yield what takes less memory, the cheapest first."""
    if not step.gradient_checkpointing:
        yield "gradient_checkpointing: true"
    # One process has come down to one example at once by itself.
    if world_size() > 1 and step.gradient_accumulation_steps < step.batch_size:
        more = min(step.batch_size, 2 * step.gradient_accumulation_steps)
        yield f"gradient_accumulation_steps: {more} instead of {step.gradient_accumulation_steps}"
    else:
        yield f"batch_size below {step.batch_size}" if step.batch_size > 1 else "a smaller model"
    if step.max_length > _SHORTEST:
        yield f"max_length: {max(_SHORTEST, step.max_length // 2)} instead of {step.max_length}"
    if adapted:
        yield "a masked_lora of a smaller rank, or on fewer layers"
    else:
        yield "a masked_lora step before it, so that only adapters are trained"
        yield "a freeze step before it: frozen layers need no gradients and no moments"
