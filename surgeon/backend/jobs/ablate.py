"""The `ablate` job: the loss without each decile of the singular values of all matrices of a role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from surgeon.backend.scoring.ablation import ablate
from surgeon.backend.scoring.context import settings_of
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan.draft import Draft


def ablate_job(
    args: Mapping[str, Any], read_draft: Callable[[Mapping[str, Any]], Draft], emit: Emit, cancelled: IsCancelled
) -> dict[str, Any]:
    """Perform an `ablate` job: the arguments of a `score` job, with `roles` in place of `names`."""
    found = ablate(read_draft(args), args["roles"], settings_of(args), emit, cancelled)
    return {"ablations": msgspec.to_builtins(found)}
