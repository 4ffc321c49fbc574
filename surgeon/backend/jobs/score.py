"""The `score` job: measures scores on the model after a recipe's steps."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from surgeon.backend.replay import replayed_draft
from surgeon.backend.scoring.context import settings_of
from surgeon.backend.scoring.score_runner import measure
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import ScoreJob, ScoreResult


def score_job(request: ScoreJob, job: JobContext) -> ScoreResult:
    """Perform a `score` job."""
    with replayed_draft(request, job) as draft:
        settings = replace(settings_of(request), weights_only=request.weights_only)
        scores = measure(draft, request.names, settings, job)
    return ScoreResult(scores=[msgspec.to_builtins(score) for score in scores])
