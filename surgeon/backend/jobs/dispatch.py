"""Which job does what. Imports a job's code when it is asked for, so that copying bytes never loads torch."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from surgeon.backend.out_of_memory import is_out_of_memory
from surgeon.core.job_context import Emit, IsCancelled, JobContext
from surgeon.core.jobs import (
    AblateJob,
    AnyJob,
    AnyResult,
    CalibrateJob,
    CheckJob,
    DataJob,
    DemoJob,
    EvaluateJob,
    Job,
    LearnJob,
    RunJob,
    ScoreJob,
    VerifyJob,
)
from surgeon.errors import SurgeonError


def perform(request: AnyJob, emit: Emit, is_cancelled: IsCancelled) -> AnyResult:
    """Perform one job and return its result.

    Raises:
        SurgeonError: whatever went wrong, in words; running out of memory or disk too.
    """
    name = _MODULES[type(request)]
    job = JobContext(emit, is_cancelled, Path(request.root), request.device, request.dtype)
    try:
        carry_out = getattr(import_module(f"surgeon.backend.jobs.{name}"), f"{name}_job")
        result: AnyResult = carry_out(request, job)
        return result
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        on_device = isinstance(error, RuntimeError) and "cpu" not in str(error).lower()
        raise _out_of_memory("the device's memory" if on_device else "this machine's memory") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SurgeonError(
                "the disk is full", where=error.filename or "", hint="free some space and try again"
            ) from error
        raise


def _out_of_memory(what: str) -> SurgeonError:
    return SurgeonError(
        f"{what} is not enough",
        allowed="--dtype bfloat16, --device cpu, shorter or fewer sequences",
        hint="close other programs that use it, or use a larger machine: --worker 'ssh HOST surgeon worker'",
    )


_MODULES: Mapping[type[Job], str] = {
    ScoreJob: "score",
    AblateJob: "ablate",
    LearnJob: "learn",
    EvaluateJob: "evaluate",
    RunJob: "run",
    VerifyJob: "verify",
    CheckJob: "check",
    DemoJob: "demo",
    DataJob: "data",
    CalibrateJob: "calibrate",
}
"""The file of each job in this package; it holds a function of its name, such as `run_job`."""
