"""Replays the steps of a recipe on its base: measures what selections ask for, carries out what has to be learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from surgeon.backend.base import open_base
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import RecipeJob
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.fold import Measured, apply_step, resolve_step
from surgeon.core.recipe.learning_step import LearningStep, ResultStep
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.core.recipe.recipe import Recipe, Step, recipe_from_builtins
from surgeon.core.scoring.score import Score
from surgeon.core.selection.selection import Ranked


def replay(
    recipe: Recipe,
    base: Draft,
    request: RecipeJob,
    job: JobContext,
    evaluate: Callable[[Draft, ReadOnlyStep, int], None] | None = None,
) -> tuple[Draft, Recipe]:
    """Apply a recipe's steps to its base, measuring what they ask for; return the draft and the resolved recipe.

    `request` says how selections by a score are measured.

    `evaluate` carries out the steps that leave the draft as it is; without it they are passed over.
    """
    draft = base
    steps: list[Step] = []
    for number, step in enumerate(recipe.steps):
        if isinstance(step.operation, ResultStep):
            apply_step(draft, step, number)  # what does not fit is said before hours of training
            before = msgspec.structs.replace(recipe, steps=tuple(steps))
            done = _made(draft, step, before, job)
            draft = apply_step(draft, done, number)
            steps.append(done)
            continue
        if evaluate is not None and isinstance(step.operation, ReadOnlyStep):
            evaluate(apply_step(draft, step, number), step.operation, number)
        ranked = step.operation.ranked() if step.resolved is None else ()
        measured = _measure(draft, ranked, recipe, request, job) if ranked else {}
        done = resolve_step(draft, step, number, measured)
        if ranked:
            job.log(f"steps[{number}].{step.operation.name}: {done.resolved}")
        draft = apply_step(draft, done, number)
        steps.append(done)
    known = msgspec.structs.replace(recipe.base, fingerprint=base.structure.checkpoint.fingerprint)
    return draft, msgspec.structs.replace(recipe, base=known, steps=tuple(steps))


def _made(draft: Draft, step: Step, recipe: Recipe, job: JobContext) -> Step:
    """Make the result of a step, or find it; return the step with its address."""
    if isinstance(step.operation, LearningStep):
        from surgeon.backend.training.learning_steps import learn

        return learn(draft, step, recipe, job)
    from surgeon.backend.training.merging import merge

    return merge(draft, step, job)


def replayed_draft(request: RecipeJob, job: JobContext) -> Draft:
    """Return the model after the recipe of a job."""
    recipe = recipe_from_builtins(request.recipe)
    return replay(recipe, open_base(recipe, "recipe", job), request, job)[0]


def _measure(
    draft: Draft,
    ranked: tuple[Ranked, ...],
    recipe: Recipe,
    request: RecipeJob,
    job: JobContext,
) -> Measured:
    from surgeon.backend.scoring.context import settings_of
    from surgeon.backend.scoring.measure import measure

    measured: dict[Ranked, Score] = {}
    for one in ranked:
        data = recipe.data.get(one.data, one.data) if one.data else request.data
        settings = replace(settings_of(request), data=data, seed=recipe.seed)
        (measured[one],) = measure(draft, [one.by], settings, job)
    return measured
