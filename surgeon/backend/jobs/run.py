"""The `run` and `verify` jobs: replay a recipe on its base and export the result.

Torch is loaded only when a step must be measured, a tensor calculated, an adapter written, or the result verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from surgeon.architectures.reading import read_structure
from surgeon.backend.data.rows import require_data
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.locating import known_elsewhere, locate_model
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.data_paths import seen_from
from surgeon.core.recipe.evaluation import Evaluated, evaluated_to_builtins
from surgeon.core.recipe.fold import Measured, apply_step, fold, resolve_step, unfrozen
from surgeon.core.recipe.learning_step import LEARNED, LearningStep, ResultStep
from surgeon.core.recipe.read_only_step import Looking, place_of
from surgeon.core.recipe.recipe import Recipe, Step, load_recipe, recipe_from_builtins, recipe_to_builtins
from surgeon.core.scoring.score import Score
from surgeon.core.selection.selection import Ranked
from surgeon.errors import Cancelled, CheckpointError, RecipeError
from surgeon.export.checkpoint_writer import ADAPTER, RECIPE, export_checkpoint, write_records
from surgeon.export.publish import published, refuse_existing, refuse_inside

if TYPE_CHECKING:
    import torch


def open_base(recipe: Recipe, where: str) -> Draft:
    """Open a recipe's base and check its fingerprint.

    Raises:
        CheckpointError, ArchitectureError: as reading it does. RecipeError: it is another model.
    """
    checkpoint = open_checkpoint(locate_model(recipe.base.model))
    recipe.base.check(checkpoint.fingerprint, str(checkpoint.path), where)
    return draft_of(read_structure(checkpoint))


def replay(
    recipe: Recipe,
    base: Draft,
    args: Mapping[str, Any],
    emit: Emit,
    cancelled: IsCancelled,
    look: Callable[[Draft, Looking, int], None] | None = None,
) -> tuple[Draft, Recipe]:
    """Apply a recipe's steps to its base, measuring what they ask for; return the draft and the resolved recipe.

    `look` carries out the steps that leave the draft as it is; without it they are passed over.
    """
    draft = base
    steps: list[Step] = []
    for number, step in enumerate(recipe.steps):
        if isinstance(step.operation, ResultStep):
            apply_step(draft, step, number)  # what does not fit is said before hours of training
            before = msgspec.structs.replace(recipe, steps=tuple(steps))
            done = _made(draft, step, before, args, emit, cancelled)
            draft = apply_step(draft, done, number)
            steps.append(done)
            continue
        if look is not None and isinstance(step.operation, Looking):
            look(apply_step(draft, step, number), step.operation, number)
        ranked = step.operation.ranked() if step.resolved is None else ()
        measured = _measure(draft, ranked, recipe, args, emit, cancelled) if ranked else {}
        done = resolve_step(draft, step, number, measured)
        if ranked:
            emit("log", {"level": "info", "text": f"steps[{number}].{step.operation.name}: {done.resolved}"})
        draft = apply_step(draft, done, number)
        steps.append(done)
    known = msgspec.structs.replace(recipe.base, fingerprint=base.structure.checkpoint.fingerprint)
    return draft, msgspec.structs.replace(recipe, base=known, steps=tuple(steps))


def _made(
    draft: Draft, step: Step, recipe: Recipe, args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled
) -> Step:
    """Make the result of a step, or find it; return the step with its address."""
    if isinstance(step.operation, LearningStep):
        from surgeon.backend.training.learning import learn

        return learn(draft, step, recipe, args, emit, cancelled)
    from surgeon.backend.training.merging import merge

    return merge(draft, step, emit)


def learn_job(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    """Perform a `learn` job: carry out the learning steps of a recipe; see `Session.learn_job` for its arguments."""
    from surgeon.core.plan.learned_results import result_report

    recipe = recipe_from_builtins(args["recipe"])
    _, recipe = replay(recipe, open_base(recipe, "recipe"), args, emit, cancelled)
    addresses = [step.resolved[LEARNED][0] for step in recipe.steps if step.resolved and LEARNED in step.resolved]
    reports = {str(address): dict(result_report(str(address))) for address in addresses}
    return {"recipe": recipe_to_builtins(recipe), "reports": reports}


def read_draft(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> Draft:
    """Return the model after the recipe in a job's arguments."""
    recipe = recipe_from_builtins(args["recipe"])
    return replay(recipe, open_base(recipe, "recipe"), args, emit, cancelled)[0]


def run_job(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    """Perform a `run` job; see `Session.run_job` for its arguments."""
    recipe = recipe_from_builtins(args["recipe"])
    base = open_base(recipe, "recipe")
    out = place_of(recipe, args.get("out"))
    # Before anything is measured: that may take hours.
    if out is not None:
        refuse_existing(out)
        refuse_inside(out, base.structure.checkpoint.path)
    require_data(recipe, Path(args.get("root", ".")))
    results: list[Evaluated] = []
    look = _look(recipe, base, results, args, emit, cancelled)
    draft, recipe = replay(recipe, base, args, emit, cancelled, look)
    plan = compile_plan(draft)
    proof = None
    if out is not None:
        export = _export_adapter if plan.adapter_alone else _export_checkpoint
        told = seen_from(recipe, Path(args.get("root", ".")), out)
        proof = export(draft, plan, told, out, results, args, emit, cancelled)
    return {
        "out": None if out is None else str(out), "parameters": plan.parameters, "bytes": plan.nbytes,
        "recipe": recipe_to_builtins(recipe), "proof": proof, "evaluations": evaluated_to_builtins(results),
    }  # fmt: skip


def _look(
    recipe: Recipe, base: Draft, results: list[Evaluated], args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled
) -> Callable[[Draft, Looking, int], None] | None:
    """Return what carries out evaluations and gates and puts down what it finds; None where nothing asks for it."""
    if not any(isinstance(step.operation, Looking) for step in recipe.steps):
        return None
    from surgeon.backend.evaluation.evaluator import Evaluator

    evaluator = Evaluator(recipe, base, args, emit, cancelled)

    def look(draft: Draft, step: Looking, number: int) -> None:
        results.extend(evaluator.look(draft, step, number))

    return look


def _measure(
    draft: Draft,
    ranked: tuple[Ranked, ...],
    recipe: Recipe,
    args: Mapping[str, Any],
    emit: Emit,
    cancelled: IsCancelled,
) -> Measured:
    from surgeon.backend.scoring.measure import measure, settings_of

    measured: dict[Ranked, Score] = {}
    for one in ranked:
        data = recipe.data.get(one.data, one.data) if one.data else args.get("data")
        settings = replace(settings_of(args), data=data, seed=recipe.seed)
        (measured[one],) = measure(draft, [one.by], settings, emit, cancelled)
    return measured


def _export_checkpoint(
    draft: Draft,
    plan: Plan,
    recipe: Recipe,
    out: Path,
    results: Sequence[Evaluated],
    args: Mapping[str, Any],
    emit: Emit,
    cancelled: IsCancelled,
) -> dict[str, Any] | None:
    def finish(directory: Path) -> dict[str, Any] | None:
        if plan.adapters:
            _write_adapter(plan, recipe, directory, directory / ADAPTER, args)
        return _verify(directory, draft, args, emit, cancelled) if args.get("verify", True) else None

    if not plan.needs_arithmetic:
        return export_checkpoint(plan, recipe, out, emit=emit, cancelled=cancelled, finish=finish, results=results)
    from surgeon.backend.model.tensors import tensor_reader

    with tensor_reader() as reader:
        return export_checkpoint(
            plan, recipe, out, emit=emit, cancelled=cancelled, arithmetic=reader.bytes_of, finish=finish,
            results=results,
        )  # fmt: skip


def _export_adapter(
    draft: Draft,
    plan: Plan,
    recipe: Recipe,
    out: Path,
    results: Sequence[Evaluated],
    args: Mapping[str, Any],
    emit: Emit,
    cancelled: IsCancelled,
) -> dict[str, Any] | None:
    """The base's weights are as they were: what comes out is a PEFT adapter directory alone."""
    from surgeon.backend.device import choose_device
    from surgeon.backend.model.adapters import write_adapter
    from surgeon.backend.model.loading import load_model
    from surgeon.export.checkpoint_writer import PROOF, pretty

    path = draft.structure.checkpoint.path
    device = choose_device(args.get("device"))

    def proceed(done: int, what: str) -> None:
        if cancelled():
            raise Cancelled
        emit("progress", {"done": done, "total": 2, "unit": "steps", "what": what})

    with published(out) as directory:
        proceed(0, "writing")
        model = load_model(path, None, device).model
        write_adapter(model, plan, known_elsewhere(recipe.base.model), recipe.seed, directory)
        write_records(plan, recipe, directory, results)
        if not args.get("verify", True):
            return None
        proceed(1, "verifying")
        proof = _adapter_proof(draft, directory, device)
        (directory / PROOF).write_bytes(pretty(proof))
    return proof


def _adapter_proof(draft: Draft, directory: Path, device: torch.device) -> dict[str, Any]:
    from surgeon.backend.model.loading import load_model
    from surgeon.backend.verification.adapter_proof import check_adapter

    base = load_model(draft.structure.checkpoint.path, None, device).model
    check = check_adapter(base, directory, base, draft)
    check.require(directory)
    return {check.name: {"passed": check.passed, "detail": check.detail}}


def _write_adapter(plan: Plan, recipe: Recipe, base: Path, directory: Path, args: Mapping[str, Any]) -> None:
    from surgeon.backend.device import choose_device
    from surgeon.backend.model.adapters import write_adapter
    from surgeon.backend.model.loading import load_model

    model = load_model(base, None, choose_device(args.get("device"))).model
    # The checkpoint beside it: a path that stays true wherever the two are moved together.
    write_adapter(model, plan, "..", recipe.seed, directory)


def _verify(
    directory: Path, draft: Draft | None, args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled
) -> dict[str, Any]:
    from surgeon.backend.device import choose_device
    from surgeon.backend.verification.export_proof import verify

    return verify(directory, draft, choose_device(args.get("device")), emit, cancelled)


def verify_job(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    """Perform a `verify` job: check an export against its own recipe and, where it is at hand, its base."""
    directory = Path(args["directory"])
    if (directory / RECIPE).is_file() and (directory / "adapter_config.json").is_file():
        return {"proof": _verify_adapter(directory, args)}
    open_checkpoint(directory)
    draft: Draft | None = None
    missing = "not at hand"
    if (directory / RECIPE).is_file():
        recipe = _own_recipe(directory, args)
        try:
            draft = fold(open_base(recipe, str(directory / RECIPE)), recipe.steps)
            if compile_plan(unfrozen(draft)).pending:
                draft, missing = None, "what its steps learned is no longer kept on this machine"
        except (CheckpointError, RecipeError) as error:
            emit("log", {"level": "warning", "text": f"not compared with the base: {error}"})
    else:
        emit("log", {"level": "warning", "text": f"not compared with the base: there is no {RECIPE}"})
    proof = _verify(directory, draft, args, emit, cancelled)
    if draft is None:
        proof["base"] = {"passed": True, "detail": f"{missing}: nothing was compared with it"}
    return {"proof": proof}


def _own_recipe(directory: Path, args: Mapping[str, Any]) -> Recipe:
    recipe = load_recipe(directory / RECIPE)
    if args.get("base"):
        recipe = msgspec.structs.replace(recipe, base=msgspec.structs.replace(recipe.base, model=args["base"]))
    return recipe


def _verify_adapter(directory: Path, args: Mapping[str, Any]) -> dict[str, Any]:
    from surgeon.backend.device import choose_device

    recipe = _own_recipe(directory, args)
    draft = fold(open_base(recipe, str(directory / RECIPE)), recipe.steps)
    return _adapter_proof(draft, directory, choose_device(args.get("device")))
