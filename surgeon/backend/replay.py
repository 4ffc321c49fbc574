"""Replays the steps of a recipe on its base: measures what selections ask for, carries out what has to be learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgspec

from surgeon.backend.open_base import open_base
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.checkpoint.model_location import adapter_beside
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import RecipeJob
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.apply_steps import Measured, apply_step, pin_step, resolve_step
from surgeon.core.recipe.data_paths import file_digests
from surgeon.core.recipe.learning_step import LearningStep, ResultStep
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.core.recipe.recipe import Recipe, Step, recipe_from_builtins
from surgeon.core.recipe.resolution import Resolution, resolved_text, stale_text, unresolved
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
    fingerprint = base.structure.checkpoint.fingerprint
    left_out = adapter_beside(base.structure.checkpoint.path)
    if left_out:
        job.warn(left_out)
    resolution = Resolution(recipe, fingerprint, file_digests(job.root))
    for number, unpinned in enumerate(recipe.steps):
        written = pin_step(unpinned, job.root)
        step = _current(written, number, steps, resolution, job)
        if isinstance(step.operation, ResultStep):
            apply_step(draft, unresolved(step), number)  # what does not fit is said before hours of training
            done = _made(draft, step, msgspec.structs.replace(recipe, steps=tuple(steps)), job)
            if written.resolved is not None and done.resolved != written.resolved:
                job.warn(stale_text(written, number, f"of something else: it is {resolved_text(done)} now"))
        else:
            if evaluate is not None and isinstance(step.operation, ReadOnlyStep):
                evaluate(apply_step(draft, step, number), step.operation, number)
            ranked = step.operation.ranked() if step.resolved is None else ()
            done = resolve_step(draft, step, number, _measure(draft, ranked, recipe, request, job) if ranked else {})
            if ranked:
                job.log(f"steps[{number}].{step.operation.name}: {done.resolved}")
        draft = apply_step(draft, done, number)
        steps.append(resolution.signed(done, steps, measured=step.resolved is None))
    known = msgspec.structs.replace(recipe.base, fingerprint=fingerprint)
    return draft, msgspec.structs.replace(recipe, base=known, steps=tuple(steps))


def _current(step: Step, number: int, before: Sequence[Step], resolution: Resolution, job: JobContext) -> Step:
    """Return a step without what it came to, if that was for something else; say so where it has to be measured."""
    reason = resolution.stale(step, before)
    if not reason:
        return step
    if not isinstance(step.operation, ResultStep):  # the result of one has an address of its own, which tells
        again = "it is measured anew" if step.operation.ranked() else "what the step says counts"
        job.warn(f"{stale_text(step, number, reason)}; {again}")
    return unresolved(step)


def _made(draft: Draft, step: Step, recipe: Recipe, job: JobContext) -> Step:
    """Make the result of a step, or find it; return the step with its address."""
    if isinstance(step.operation, LearningStep):
        from surgeon.backend.training.learning_steps import learn

        return learn(draft, step, recipe, job)
    from surgeon.backend.training.merging import merge

    return merge(draft, step, job)


@contextmanager
def replayed_draft(request: RecipeJob, job: JobContext) -> Iterator[Draft]:
    """Yield the model after the recipe of a job; a base that changes meanwhile is an error that names the file."""
    recipe = recipe_from_builtins(request.recipe)
    base = open_base(recipe, "recipe", job.root, job)
    with FileStamps(base.structure.checkpoint).watched():
        yield replay(recipe, base, request, job)[0]


def _measure(
    draft: Draft,
    ranked: tuple[Ranked, ...],
    recipe: Recipe,
    request: RecipeJob,
    job: JobContext,
) -> Measured:
    from surgeon.backend.scoring.context import settings_of
    from surgeon.backend.scoring.score_runner import measure

    measured: dict[Ranked, Score] = {}
    for one in ranked:
        data = recipe.data.get(one.data, one.data) if one.data else request.data
        settings = replace(settings_of(request), data=data, seed=recipe.seed)
        (measured[one],) = measure(draft, [one.by], settings, job)
    return measured
