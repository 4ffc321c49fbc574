"""What a job ends with when it runs out of something."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from surgeon.backend.evaluation import evaluator
from surgeon.errors import SurgeonError
from tests.backend.training_recipes import pupil, recipe
from tests.jobs import keep_silent, never, perform


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the device's memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "the device's memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "this machine",
        ),
        (MemoryError(), "this machine"),
    ],
)
def test_running_out_of_memory_while_measuring_says_what_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, whose: str
) -> None:
    """In the words of every allocator; not a trace."""

    def run_out(*args: Any, **fields: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(evaluator, "log_likelihoods", run_out)
    args = {"recipe": recipe(pupil(tmp_path), [{"evaluate": {"data": "text.jsonl"}}]), "root": str(tmp_path)}
    with pytest.raises(SurgeonError, match=f"^{whose}.* is not enough") as caught:
        perform("run", args, keep_silent, never)
    assert "--dtype bfloat16" in caught.value.allowed
