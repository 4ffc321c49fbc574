"""The `check` job: whether a model holds what the class that loads it expects."""

from __future__ import annotations

import msgspec

from surgeon.backend.model.fit import fit_of
from surgeon.core.checkpoint.base_path import locate_base
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.job_context import JobContext
from surgeon.core.job_results import CheckResult
from surgeon.core.jobs import CheckJob


def check_job(request: CheckJob, job: JobContext) -> CheckResult:
    """Perform a `check` job."""
    place = locate_base(request.model, job.root)
    fit = fit_of(open_checkpoint(place, trust_remote_code=request.trust_remote_code))
    return CheckResult(fit=msgspec.to_builtins(fit), text=fit.text, whole=fit.whole)
