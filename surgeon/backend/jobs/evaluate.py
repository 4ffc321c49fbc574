"""The `evaluate` job: looks at the model at some steps of a recipe; nothing is written."""

from __future__ import annotations

from surgeon.backend.data.required_data import require_data
from surgeon.backend.evaluation.evaluator import Evaluator
from surgeon.backend.open_base import open_base
from surgeon.backend.replay import replay
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import EvaluateJob, EvaluateResult
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.evaluation_metrics import EvaluationResult, evaluations_to_builtins
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.core.recipe.recipe import recipe_from_builtins, recipe_to_builtins


def evaluate_job(request: EvaluateJob, job: JobContext) -> EvaluateResult:
    """Perform an `evaluate` job."""
    recipe = recipe_from_builtins(request.recipe)
    base = open_base(recipe, "recipe", job.root)
    require_data(recipe, job.root)
    results: list[EvaluationResult] = []
    with FileStamps(base.structure.checkpoint).watched():
        evaluator = Evaluator(recipe, base, job)

        def evaluate(draft: Draft, step: ReadOnlyStep, number: int) -> None:
            if number >= request.first:
                results.extend(evaluator.evaluate(draft, step, number, looking=True))

        _, recipe = replay(recipe, base, request, job, evaluate)
    return EvaluateResult(recipe=recipe_to_builtins(recipe), evaluations=evaluations_to_builtins(results))
