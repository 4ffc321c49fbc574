"""Looks at a draft's own trained adapters, one matrix after the other, for every score of them that was asked."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.backend.model.tensors import tensor_reader
from surgeon.backend.scoring.context import Settings
from surgeon.backend.scoring.learned_scores import score_of_matrices
from surgeon.backend.trained_adapters import trained_updates
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.learning_step import result_names
from surgeon.core.scoring.score import Score
from surgeon.core.scoring.score_kinds import AdapterScore, LearnedValues
from surgeon.errors import ScoreError


def adapters_pass(draft: Draft, kinds: Sequence[AdapterScore], settings: Settings, job: JobContext) -> dict[str, Score]:
    """Return the scores of the adapters.

    Raises:
        ScoreError: none was trained.
    """
    values: dict[str, dict[str, float]] = {kind.name: {} for kind in kinds}
    own = dict(result_names(draft))
    planned = {own[tensor.name]: tensor for tensor in compile_plan(draft).tensors if tensor.name in own}
    updates = trained_updates(draft)
    with tensor_reader() as reader:
        for done, (name, (_, update)) in enumerate(updates.items()):
            job.stop_if_cancelled()
            job.progress(done, len(updates), "matrices", "adapters")
            tensor = planned[f"{name}.weight"]
            weight = reader.evaluate(tensor.source, tensor.dtype, tensor.shape).float()
            weight = weight.T if update.transposed else weight
            for kind in kinds:
                values[kind.name][name] = kind.matrix(weight, update.b_OR, update.a_RI)
    if not any(values.values()):
        raise ScoreError(
            "there are no trained adapters", where=", ".join(values), allowed="after load_adapter or train",
            hint="open the adapter's directory: surgeon score ADAPTER --by …",
        )  # fmt: skip
    return {kind.name: score_of_matrices(draft, kind, LearnedValues(values[kind.name]), settings) for kind in kinds}
