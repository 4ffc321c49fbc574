"""Scores that are learned: a few steps of a recipe, carried out as any recipe's, and what their reports say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from surgeon.backend.data.rows import source_digest
from surgeon.backend.digests import digest_of, side_digest
from surgeon.backend.distributed import world_size
from surgeon.backend.scoring.context import Settings, provenance_of
from surgeon.backend.training.learning_steps import learn
from surgeon.core.events import AnyEvent, LayerScored, Progress
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import result_report
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import apply_step
from surgeon.core.recipe.learning_step import LEARNED, LearningStep
from surgeon.core.recipe.recipe import Base, Recipe, step_of
from surgeon.core.scoring.score import Provenance, Score
from surgeon.core.scoring.score_kinds import LearnedValues, LearningScore, ScoreKind
from surgeon.errors import ScoreError


def learned_origin(draft: Draft, settings: Settings) -> Provenance:
    """Return what a learned score is made from; `data` names its file's bytes and the tokenizer. In float32."""
    origin = provenance_of(draft, settings)
    data = digest_of((source_digest(settings.data, settings.root), side_digest(draft.structure.checkpoint)))
    return msgspec.structs.replace(origin, data=data, seed=settings.seed, dtype="float32")


def learned_score(draft: Draft, kind: LearningScore, settings: Settings, job: JobContext) -> Score:
    """Carry out a score's steps and read it; layers are told one after the other at the end.

    What has been trained before on the same weights, with the same data and settings, is not trained again, and an
    interrupted training goes on.

    Raises:
        ScoreError: nothing was learned.   DataError, LearningError: as training does.
    """
    reports = _own_reports(draft) if kind.of_adapters else _learned(draft, kind, settings, job)
    score = score_of_matrices(draft, kind, kind.read(reports, settings.seed), settings)
    for key, value in score.values.items():
        matrices = score.matrices.get(key)
        job.emit(LayerScored(score=kind.name, layer=key, value=value, matrices=matrices))
    return score


def _own_reports(draft: Draft) -> list[Mapping[str, Any]]:
    """Return what the last trainings of the draft's adapters reported, of those that the draft still has."""
    adapters = compile_plan(draft).adapters
    addresses = sorted({adapter.lora.address for adapter in adapters if adapter.lora.address is not None})
    names = {adapter.name for adapter in adapters}
    reports: list[Mapping[str, Any]] = []
    for address in addresses:
        report = dict(result_report(address))
        if "masks" in report:
            report["masks"] = {name: mask for name, mask in report["masks"].items() if name in names}
        reports.append(report)
    return reports


def _learned(draft: Draft, kind: LearningScore, settings: Settings, job: JobContext) -> list[Mapping[str, Any]]:
    """Carry out a score's steps; return what those that learn report."""
    _refuse_many_processes(draft, kind)
    draft = replace(draft, mask=None)  # as freezes, it says what later training may change, not what the weights are
    checkpoint = draft.structure.checkpoint
    base = Base(model=str(checkpoint.path.absolute()), trust_remote_code=checkpoint.trust_remote_code)
    recipe = Recipe(base=base, seed=settings.seed)
    job = replace(job, root=settings.root, device=settings.device)
    after = draft
    reports: list[Mapping[str, Any]] = []
    for number, plain in enumerate(kind.recipe(settings.data)):
        ((name, fields),) = plain.items()
        step = step_of(name, fields, kind.name)
        if isinstance(step.operation, LearningStep):
            step = learn(after, step, recipe, _named(kind.name, name, job))
            assert step.resolved is not None
            reports.append(result_report(str(step.resolved[LEARNED][0])))
        after = apply_step(after, step, number)
        recipe = msgspec.structs.replace(recipe, steps=(*recipe.steps, step))
    return reports


def _refuse_many_processes(draft: Draft, kind: LearningScore) -> None:
    """Refuse to train along with processes that cannot know the draft: they are told a recipe, and here is none."""
    if world_size() > 1 and draft.moved:
        raise ScoreError(
            f"{kind.name} of an edited model is learned by one process", where=kind.name,
            hint="export the edited model and score that, or start one process",
        )  # fmt: skip


def _named(score: str, step: str, job: JobContext) -> JobContext:
    """Say in every progress event which training of which score it is of."""

    def emit(event: AnyEvent) -> None:
        named = isinstance(event, Progress)
        job.emit(msgspec.structs.replace(event, what=f"{score}: {step}") if named else event)

    return replace(job, emit=emit)


def score_of_matrices(draft: Draft, kind: ScoreKind, learnt: LearnedValues, settings: Settings) -> Score:
    """Return a score from its values by adapter."""
    stack = draft.structure.stack().name
    matrices: dict[str, dict[str, float]] = {layer.key: {} for layer in draft.layers()}
    for name, value in learnt.matrices.items():
        of_stack, key, suffix = name.split("/", 2)
        if of_stack == stack:
            matrices[key][f"{suffix}.weight"] = value
    return Score(
        # A layer without such a matrix has no score: any number would rank it.
        name=kind.name, values={key: math.fsum(row.values()) / len(row) for key, row in matrices.items() if row},
        matrices={key: row for key, row in matrices.items() if row}, details=dict(learnt.details),
        notes=(*learnt.notes, *_left_out(draft)), provenance=provenance_of(draft, settings),
    )  # fmt: skip


def _left_out(draft: Draft) -> tuple[str, ...]:
    if any(role.startswith("experts.") for role in draft.structure.roles):
        return ("experts are not ranked: they have no adapter of their own",)
    return ()
