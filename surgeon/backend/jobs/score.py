"""The `score` job: measures scores on the model after a recipe's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from surgeon.backend.scoring.context import settings_of
from surgeon.backend.scoring.measure import measure
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan.draft import Draft


def score_job(
    args: Mapping[str, Any], read_draft: Callable[[Mapping[str, Any]], Draft], emit: Emit, cancelled: IsCancelled
) -> dict[str, Any]:
    """Perform a `score` job; see `Session.score_job` for its arguments."""
    settings = settings_of(args)
    scores = measure(read_draft(args), args["names"], settings, emit, cancelled)
    return {"scores": [msgspec.to_builtins(score) for score in scores]}
