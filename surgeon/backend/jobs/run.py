"""The `run` job: replays a recipe on its base and exports the result.

Torch is loaded only when a step must be measured, a tensor calculated, an adapter written, or the result verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from surgeon.backend.base import open_base
from surgeon.backend.data.rows import require_data
from surgeon.backend.jobs.verify import verify_checkpoint
from surgeon.backend.replay import replay
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.checkpoint.fit import kept_fit
from surgeon.core.checkpoint.locating import known_elsewhere
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import Proof, RunJob, RunResult
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.data_paths import seen_from
from surgeon.core.recipe.evaluation import EvaluationResult, evaluations_to_builtins
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.read_only_step import ReadOnlyStep, output_directory
from surgeon.core.recipe.recipe import Recipe, Step, recipe_from_builtins, recipe_to_builtins
from surgeon.errors import ArchitectureError
from surgeon.export.checkpoint_writer import ADAPTER, PROOF, export_checkpoint, pretty, write_records
from surgeon.export.publish import published, refuse_existing, refuse_inside

_UNPROVED = "--no-verify does without it, and writes the result unproved"


def run_job(request: RunJob, job: JobContext) -> RunResult:
    """Perform a `run` job.

    Raises:
        SurgeonError: the recipe does not fit, a gate is not met, or the export could not be written or proved.
    """
    recipe = recipe_from_builtins(request.recipe)
    base = open_base(recipe, "recipe", job)
    out = output_directory(recipe, request.out)
    # Before anything is measured: that may take hours.
    if out is not None:
        refuse_existing(out)
        refuse_inside(out, base.structure.checkpoint.path)
    require_data(recipe, job.root)
    needs_model = any(map(_needs_model, recipe.steps))
    if out is not None and request.verify and needs_model:
        _require_fit(base, hint="")
    results: list[EvaluationResult] = []
    draft, recipe = replay(recipe, base, request, job, _evaluation_of(recipe, base, results, job))
    plan = compile_plan(draft)
    proof = None
    if out is not None:
        if request.verify or plan.adapters:
            _require_fit(base, hint="" if needs_model or plan.adapters else _UNPROVED)
        else:
            _tell_unproved(base, job)
        export = _Export(draft, plan, seen_from(recipe, job.root, out), out, results, request.verify, job)
        proof = export.adapter() if plan.adapter_alone else export.checkpoint()
    return RunResult(
        out=None if out is None else str(out), parameters=plan.parameters, bytes=plan.nbytes,
        recipe=recipe_to_builtins(recipe), proof=proof, evaluations=evaluations_to_builtins(results),
    )  # fmt: skip


def _needs_model(step: Step) -> bool:
    """Whether a step cannot be carried out without loading the model."""
    operation = step.operation
    unmeasured = step.resolved is None and bool(operation.ranked())
    return unmeasured or isinstance(operation, LearningStep | ReadOnlyStep)


def _require_fit(base: Draft, hint: str) -> None:
    """Refuse a base that could not be verified against, before anything is measured or written.

    `hint` is added to what is said of one that cannot be loaded here at all.
    """
    from surgeon.backend.model.fit import require_fit

    try:
        require_fit(base.structure.checkpoint)
    except ArchitectureError as error:
        more = "; ".join(filter(None, (error.hint, hint)))
        raise ArchitectureError(error.what, where=error.where, allowed=error.allowed, hint=more) from error


def _tell_unproved(base: Draft, job: JobContext) -> None:
    """Say what nobody has looked at, and what is known to be wrong with the base."""
    fit = kept_fit(base.structure.checkpoint)
    if fit is not None and not fit.whole:
        job.warn(f"{base.structure.checkpoint.path.name} {fit.text}")
    job.warn("not verified: that transformers loads it, and that it computes what was planned, is not proved")


def _evaluation_of(
    recipe: Recipe, base: Draft, results: list[EvaluationResult], job: JobContext
) -> Callable[[Draft, ReadOnlyStep, int], None] | None:
    """Return what carries out evaluations and gates and keeps their results; None where no step asks for it."""
    if not any(isinstance(step.operation, ReadOnlyStep) for step in recipe.steps):
        return None
    from surgeon.backend.evaluation.evaluator import Evaluator

    evaluator = Evaluator(recipe, base, job)

    def evaluate(draft: Draft, step: ReadOnlyStep, number: int) -> None:
        results.extend(evaluator.evaluate(draft, step, number))

    return evaluate


@dataclass(frozen=True)
class _Export:
    """A model to be written to `out`."""

    draft: Draft
    plan: Plan
    recipe: Recipe
    out: Path
    results: Sequence[EvaluationResult]
    verify: bool
    job: JobContext

    def checkpoint(self) -> Proof | None:
        """Write a checkpoint, its adapter beside it where the draft has one; return the proof."""
        if not self.plan.needs_arithmetic:
            return export_checkpoint(
                self.plan, self.recipe, self.out, job=self.job, finish=self._finish, results=self.results
            )
        from surgeon.backend.model.tensors import tensor_reader

        with tensor_reader() as reader:
            return export_checkpoint(
                self.plan, self.recipe, self.out, job=self.job, arithmetic=reader.bytes_of, finish=self._finish,
                results=self.results,
            )  # fmt: skip

    def _finish(self, directory: Path) -> Proof | None:
        if self.plan.adapters:
            # The checkpoint beside it: a path that stays true wherever the two are moved together.
            self._write_adapter(self._open(directory), "..", directory / ADAPTER)
        return verify_checkpoint(self._open(directory), self.draft, self.job) if self.verify else None

    def _open(self, directory: Path) -> Checkpoint:
        return open_checkpoint(directory, trust_remote_code=self.draft.structure.checkpoint.trust_remote_code)

    def adapter(self) -> Proof | None:
        """Write a PEFT adapter alone, where the base's weights are as they were; return the proof."""
        from surgeon.backend.device import choose_device
        from surgeon.backend.verification.adapter_proof import prove_adapter

        with published(self.out) as directory:
            self._proceed(0, "writing")
            self._write_adapter(self.draft.structure.checkpoint, known_elsewhere(self.recipe.base.model), directory)
            write_records(self.plan, self.recipe, directory, self.results)
            if not self.verify:
                return None
            self._proceed(1, "verifying")
            proof = prove_adapter(self.draft, directory, choose_device(self.job.device))
            (directory / PROOF).write_bytes(pretty(proof))
        return proof

    def _proceed(self, done: int, what: str) -> None:
        self.job.stop_if_cancelled()
        self.job.progress(done, 2, "steps", what)

    def _write_adapter(self, base: Checkpoint, called: str, directory: Path) -> None:
        """Write the draft's adapters for a checkpoint, which the adapter's config calls `called`."""
        from surgeon.backend.device import choose_device
        from surgeon.backend.model.adapters import write_adapter
        from surgeon.backend.model.loading import load_model

        model = load_model(base, None, choose_device(self.job.device)).model
        write_adapter(model, self.plan, called, self.recipe.seed, directory)
