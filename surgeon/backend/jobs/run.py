"""The `run` and `verify` jobs: replay a recipe on its base and export the result.

Torch is loaded only when a step must be measured, a tensor calculated, an adapter written, or the result verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgeon.backend.base import open_base
from surgeon.backend.data.rows import require_data
from surgeon.backend.jobs.verify import verify_directory
from surgeon.backend.replay import replay
from surgeon.backend.verification.adapter_proof import prove_adapter
from surgeon.core.checkpoint.locating import known_elsewhere
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.data_paths import seen_from
from surgeon.core.recipe.evaluation import EvaluationResult, evaluations_to_builtins
from surgeon.core.recipe.read_only_step import ReadOnlyStep, output_directory
from surgeon.core.recipe.recipe import Recipe, recipe_from_builtins, recipe_to_builtins
from surgeon.errors import Cancelled
from surgeon.export.checkpoint_writer import ADAPTER, export_checkpoint, write_records
from surgeon.export.publish import published, refuse_existing, refuse_inside


def run_job(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    """Perform a `run` job; see `Session.run_job` for its arguments."""
    recipe = recipe_from_builtins(args["recipe"])
    base = open_base(recipe, "recipe")
    out = output_directory(recipe, args.get("out"))
    # Before anything is measured: that may take hours.
    if out is not None:
        refuse_existing(out)
        refuse_inside(out, base.structure.checkpoint.path)
    require_data(recipe, Path(args.get("root", ".")))
    results: list[EvaluationResult] = []
    evaluate = _evaluation_of(recipe, base, results, args, emit, cancelled)
    draft, recipe = replay(recipe, base, args, emit, cancelled, evaluate)
    plan = compile_plan(draft)
    proof = None
    if out is not None:
        export = _export_adapter if plan.adapter_alone else _export_checkpoint
        told = seen_from(recipe, Path(args.get("root", ".")), out)
        proof = export(draft, plan, told, out, results, args, emit, cancelled)
    return {
        "out": None if out is None else str(out), "parameters": plan.parameters, "bytes": plan.nbytes,
        "recipe": recipe_to_builtins(recipe), "proof": proof, "evaluations": evaluations_to_builtins(results),
    }  # fmt: skip


def _evaluation_of(
    recipe: Recipe,
    base: Draft,
    results: list[EvaluationResult],
    args: Mapping[str, Any],
    emit: Emit,
    cancelled: IsCancelled,
) -> Callable[[Draft, ReadOnlyStep, int], None] | None:
    """Return what carries out evaluations and gates and puts down what it finds; None where nothing asks for it."""
    if not any(isinstance(step.operation, ReadOnlyStep) for step in recipe.steps):
        return None
    from surgeon.backend.evaluation.evaluator import Evaluator

    evaluator = Evaluator(recipe, base, args, emit, cancelled)

    def evaluate(draft: Draft, step: ReadOnlyStep, number: int) -> None:
        results.extend(evaluator.evaluate(draft, step, number))

    return evaluate


def _export_checkpoint(
    draft: Draft,
    plan: Plan,
    recipe: Recipe,
    out: Path,
    results: Sequence[EvaluationResult],
    args: Mapping[str, Any],
    emit: Emit,
    cancelled: IsCancelled,
) -> dict[str, Any] | None:
    def finish(directory: Path) -> dict[str, Any] | None:
        if plan.adapters:
            _write_adapter(plan, recipe, directory, directory / ADAPTER, args)
        return verify_directory(directory, draft, args, emit, cancelled) if args.get("verify", True) else None

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
    results: Sequence[EvaluationResult],
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
        proof = prove_adapter(draft, directory, device)
        (directory / PROOF).write_bytes(pretty(proof))
    return proof


def _write_adapter(plan: Plan, recipe: Recipe, base: Path, directory: Path, args: Mapping[str, Any]) -> None:
    from surgeon.backend.device import choose_device
    from surgeon.backend.model.adapters import write_adapter
    from surgeon.backend.model.loading import load_model

    model = load_model(base, None, choose_device(args.get("device"))).model
    # The checkpoint beside it: a path that stays true wherever the two are moved together.
    write_adapter(model, plan, "..", recipe.seed, directory)
