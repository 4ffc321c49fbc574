"""The `learn` job: carries out the learning steps of a recipe."""

from __future__ import annotations

from surgeon.backend.open_base import open_base
from surgeon.backend.replay import replay
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.job_context import JobContext
from surgeon.core.job_results import LearnResult
from surgeon.core.jobs import LearnJob
from surgeon.core.plan.learned_results import result_report
from surgeon.core.recipe.learning_step import LEARNED
from surgeon.core.recipe.recipe import recipe_from_builtins, recipe_to_builtins


def learn_job(request: LearnJob, job: JobContext) -> LearnResult:
    """Perform a `learn` job."""
    recipe = recipe_from_builtins(request.recipe)
    base = open_base(recipe, "recipe", job.root, job)
    with FileStamps(base.structure.checkpoint).watched():
        _, recipe = replay(recipe, base, request, job)
    addresses = [step.resolved[LEARNED][0] for step in recipe.steps if step.resolved and LEARNED in step.resolved]
    reports = {str(address): dict(result_report(str(address))) for address in addresses}
    return LearnResult(recipe=recipe_to_builtins(recipe), reports=reports)
