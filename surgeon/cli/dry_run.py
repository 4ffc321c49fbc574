"""A recipe folded and compiled without doing anything: what each step changes and what would come out. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.base_path import locate_base
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.fit import kept_fit
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.kv_cache import kv_cache
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import apply_step, changes_of, margins, pin_step
from surgeon.core.recipe.data_paths import file_digests
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.recipe import Recipe, Step, step_to_builtins
from surgeon.core.recipe.resolution import Resolution, stale_text, unresolved
from surgeon.core.recipe.training_memory import trained_parameters, training_bytes
from surgeon.core.scoring.requests import request_name
from surgeon.core.scoring.score import RUNS, Provenance, Score
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.core.selection.budget_layers import measured_budget
from surgeon.core.selection.part_selection import part_counts
from surgeon.core.selection.selection import Ranked
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import SUBLAYERS, Structure
from surgeon.errors import ArchitectureError, RecipeError

ABSENT = "(absent)"


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one step changes.

    measure: the scores that must be measured before it is known which layers it means.
    learn: what a learning step trains and the least memory it takes, unless its result is here; None for other steps.
    exact: False where the figures assume an outcome of such a measurement, this step's or an earlier one's.
    stale: what the recipe says that the step came to and that does not hold any more, and why.
    """

    number: int
    step: dict[str, Any]
    layers_before: int
    layers_after: int
    parameters_change: int
    bytes_change: int
    changes: str
    measure: tuple[dict[str, str | None], ...]
    exact: bool
    learn: dict[str, int] | None = None
    stale: str = ""


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do.

    config: old and new value by dotted key.   writes: checkpoint, adapter, or both.   unknown: why it ends early.
    notes: what is known of the base that a run would tell, or refuse it for.
    """

    model: str
    steps: tuple[StepReport, ...]
    config: dict[str, tuple[Any, Any]]
    layers: int
    tensors: int
    parameters: int
    bytes: int
    trainable_parameters: int
    adapters: int
    writes: str
    kv_cache_bytes_per_token: int | None
    exact: bool
    unknown: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folded:
    """A recipe, the drafts after each of its steps, the base first, and the plan of the last."""

    recipe: Recipe
    drafts: tuple[Draft, ...]
    plan: Plan
    reports: tuple[StepReport, ...]
    unknown: str = ""

    @property
    def dry_run(self) -> DryRun:
        """The report on all of it."""
        draft, plan = self.drafts[-1], self.plan
        return DryRun(
            model=self.recipe.base.model,
            steps=self.reports,
            config=config_changes(draft.structure.checkpoint.config, plan.config),
            layers=len(draft.layers()),
            tensors=plan.tensor_count,
            parameters=plan.parameters,
            bytes=plan.nbytes,
            trainable_parameters=plan.trainable_parameters,
            adapters=len(plan.adapters),
            writes=_writes(plan),
            kv_cache_bytes_per_token=kv_cache(draft).bytes_per_token,
            exact=not self.unknown and all(report.exact for report in self.reports),
            unknown=self.unknown,
            notes=_notes_of(self.drafts[0].structure),
        )


def _notes_of(base: Structure) -> tuple[str, ...]:
    """Return what is known of a base: how its files are read, and whether it was found not to fit its class."""
    fit = kept_fit(base.checkpoint)
    faults = (fit.text,) if fit is not None and not fit.whole else ()
    return (*base.checkpoint.notes, *base.problems, *faults)


def _writes(plan: Plan) -> str:
    if not plan.adapters:
        return "checkpoint"
    return "checkpoint and adapter" if plan.moved else "adapter"


def fold_recipe(recipe: Recipe, where: Path | None = None, root: Path | None = None) -> Folded:
    """Fold a recipe over its base. Measured selections are assumed, so that what follows them is checked too.

    `where` is its file; `root` is its directory, where that is another.

    Raises:
        CheckpointError, ArchitectureError, RecipeError: the model cannot be read, or a step does not fit it.
    """
    root = root or (where.absolute().parent if where is not None else Path.cwd())
    place, trusted = locate_base(recipe.base.model, root), recipe.base.trust_remote_code
    checkpoint = open_checkpoint(place, trust_remote_code=trusted, load_in=recipe.base.load_in)
    # Only where something is compared with it: that of hundreds of gigabytes takes seconds.
    compared = recipe.base.fingerprint or any(step.resolved_for for step in recipe.steps)
    fingerprint = checkpoint.fingerprint if compared else ""
    recipe.base.check(fingerprint, str(checkpoint.path), str(where or "recipe"))
    drafts = [draft_of(read_structure(checkpoint), root)]
    reports: list[StepReport] = []
    plan, exact = compile_plan(drafts[0]), True
    resolution, steps = Resolution(recipe, fingerprint or None, file_digests(root)), list[Step]()
    for number, unpinned in enumerate(recipe.steps):
        written = pin_step(unpinned, root)
        reason = resolution.stale(written, steps)
        step = unresolved(written) if reason else written
        assumed = _assumed(drafts[-1], step)
        if assumed and any(measured_budget(selection) for selection in step.operation.selections().values()):
            unknown = f"how many layers steps[{number}] removes is known only once their speed has been measured"
            return Folded(recipe, tuple(drafts), plan, tuple(reports), unknown)
        try:
            draft = apply_step(drafts[-1], step, number, assumed)
            after = compile_plan(draft)
        except (RecipeError, ArchitectureError) as error:
            if exact:
                raise
            unknown = f"whether steps[{number}] fits is known only then: {error.what}"
            return Folded(recipe, tuple(drafts), plan, tuple(reports), unknown)
        exact = exact and not assumed
        report = _report(number, step, drafts[-1], draft, (plan, after), tuple(assumed), exact)
        stale = stale_text(written, number, reason) if reason else ""
        reports.append(msgspec.structs.replace(report, stale=stale))
        steps.append(step)
        drafts.append(draft)
        plan = after
    pinned = msgspec.structs.replace(recipe, steps=tuple(pin_step(step, root) for step in recipe.steps))
    return Folded(pinned, tuple(drafts), plan, tuple(reports))


def _assumed(draft: Draft, step: Step) -> Mapping[Ranked, Score]:
    """Return a score in which all layers and matrices are alike for each one that is not there yet."""
    if step.resolved is not None or not step.operation.ranked():
        return {}
    stack, layers = draft.structure.stack(step.operation.stack), draft.layers(step.operation.stack)
    values = {layer.key: 0.0 for layer in layers}
    sublayers = {name: [0.0] * len(layers) for name in SUBLAYERS}
    runs = {f"{at}-{at}": [0.0, None] for at in range(len(layers))}
    matrices = {layer.key: _alike(layout_of(draft.structure, stack, layer.source)) for layer in layers}
    origin = Provenance(fingerprint="")
    return {
        ranked: Score(
            name=ranked.by, values=values, matrices=matrices, provenance=origin, details={**sublayers, RUNS: runs},
            parts=_equal_parts(draft, step.operation.stack, ranked),
        )
        for ranked in step.operation.ranked()
    }  # fmt: skip


def _alike(layout: Layout) -> dict[str, float]:
    return {suffix: 0.0 for suffix, one in layout.types.items() if len(one.shape) >= 2}


def _equal_parts(draft: Draft, stack: str | None, ranked: Ranked) -> dict[str, list[float]]:
    """Return equal values of the parts that a score is of, by layer key; none where it is of layers or matrices."""
    kind = score_kinds()[request_name(ranked.by)].part
    if not kind:
        return {}
    layers = draft.layers(stack)
    return {layers[at].key: [0.0] * count for at, count in part_counts(draft, stack, kind).items()}


def _report(
    number: int,
    step: Step,
    before: Draft,
    after: Draft,
    plans: tuple[Plan, Plan],
    ranked: tuple[Ranked, ...],
    exact: bool,
) -> StepReport:
    stack = step.operation.stack
    old, new = plans
    said = [
        changes_of(before, after),
        *margins(before, step),
        _frozen_text(old, new),
        _adapters_text(old, new),
        _learned_text(step),
    ]
    return StepReport(
        number=number,
        step=step_to_builtins(step),
        layers_before=len(before.layers(stack)),
        layers_after=len(after.layers(stack)),
        parameters_change=new.parameters - old.parameters,
        bytes_change=new.nbytes - old.nbytes,
        changes=", ".join(filter(None, said)) or "changes nothing",
        measure=tuple({"score": one.by, "data": one.data} for one in ranked),
        exact=exact,
        learn=_learn(step, before, old) if new.pending else None,
    )


def _learn(step: Step, draft: Draft, plan: Plan) -> dict[str, int] | None:
    if not isinstance(step.operation, LearningStep):
        return None
    trained = trained_parameters(step.operation, draft, plan)
    return {"parameters": trained, "bytes": training_bytes(step.operation, draft, plan)}


def _learned_text(step: Step) -> str:
    return "learns" if isinstance(step.operation, LearningStep) else ""


def _frozen_text(old: Plan, new: Plan) -> str:
    count = len(new.frozen) - len(old.frozen)
    return f"froze {count} tensors" if count > 0 else ""


def _adapters_text(old: Plan, new: Plan) -> str:
    count = len(new.adapters) - len(old.adapters)
    return f"attached {count} adapters" if count > 0 else f"dropped {-count} adapters" if count < 0 else ""


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ, dotted, with old and new value."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    keys = dict.fromkeys([*before, *after])
    return {
        key: (before.get(key, ABSENT), after.get(key, ABSENT))
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    }


def _leaves(part: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
