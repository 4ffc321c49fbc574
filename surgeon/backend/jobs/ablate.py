"""The `ablate` job: the loss without each decile of the singular values of all matrices of a role."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from surgeon.backend.replay import replayed_draft
from surgeon.backend.scoring.context import settings_of
from surgeon.backend.scoring.singular_value_ablation import ablate
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import AblateJob, AblateResult


def ablate_job(request: AblateJob, job: JobContext) -> AblateResult:
    """Perform an `ablate` job."""
    with replayed_draft(request, job) as draft:
        found = ablate(draft, request.roles, replace(settings_of(request), weights_only=request.weights_only), job)
    return AblateResult(ablations=msgspec.to_builtins(found))
