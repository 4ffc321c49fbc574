"""Looks at a draft's own trained adapters, one matrix after the other, for every score of them that was asked."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.backend.model.tensors import tensor_reader
from surgeon.backend.scoring.context import Settings
from surgeon.backend.scoring.learned_scores import score_of_matrices
from surgeon.backend.training.merging import adapted_weights
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.scoring.score import Score
from surgeon.core.scoring.score_kinds import AdapterScore, LearnedValues
from surgeon.errors import ScoreError


def adapters_pass(draft: Draft, kinds: Sequence[AdapterScore], settings: Settings, job: JobContext) -> dict[str, Score]:
    """Return the scores of the adapters.

    Raises:
        ScoreError: none was trained.
    """
    values: dict[str, dict[str, float]] = {kind.name: {} for kind in kinds}
    count = len(compile_plan(draft).adapters)
    with tensor_reader() as reader:
        for done, (adapter, weight, (scale, b_OR, a_RI)) in enumerate(adapted_weights(reader, draft)):
            job.stop_if_cancelled()
            job.progress(done, count, "matrices", "adapters")
            for kind in kinds:
                values[kind.name][adapter.name] = kind.matrix(weight.float(), scale * b_OR, a_RI)
    if not any(values.values()):
        raise ScoreError(
            "there are no trained adapters", where=", ".join(values), allowed="after load_adapter or train",
            hint="open the adapter's directory: surgeon score ADAPTER --by …",
        )  # fmt: skip
    return {kind.name: score_of_matrices(draft, kind, LearnedValues(values[kind.name]), settings) for kind in kinds}
