"""Which job does what. Imports a job's code when it is asked for, so that copying bytes never loads torch."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from surgeon.backend.out_of_memory import is_out_of_memory
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.errors import SurgeonError, WorkerError


def perform(job: str, args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    """Perform one job and return its result.

    Raises:
        SurgeonError: whatever went wrong, in words; running out of memory or disk too.
    """
    try:
        return _JOBS[job](args, emit, cancelled)
    except KeyError:
        if job in _JOBS:
            raise
        raise WorkerError(f"no job {job!r}", where="worker", allowed=", ".join(_JOBS)) from None
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


def _score(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    from surgeon.backend.jobs.score import score_job
    from surgeon.backend.replay import read_draft

    return score_job(args, lambda args: read_draft(args, emit, cancelled), emit, cancelled)


def _ablate(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    from surgeon.backend.jobs.ablate import ablate_job
    from surgeon.backend.replay import read_draft

    return ablate_job(args, lambda args: read_draft(args, emit, cancelled), emit, cancelled)


def _run(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    from surgeon.backend.jobs.run import run_job

    return run_job(args, emit, cancelled)


def _learn(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    from surgeon.backend.jobs.learn import learn_job

    return learn_job(args, emit, cancelled)


def _verify(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    from surgeon.backend.jobs.verify import verify_job

    return verify_job(args, emit, cancelled)


def _demo(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    del args
    from surgeon.demo.fetching import fetch_demo

    return {"path": str(fetch_demo(emit, cancelled))}


_JOBS = {"score": _score, "ablate": _ablate, "learn": _learn, "run": _run, "verify": _verify, "demo": _demo}
