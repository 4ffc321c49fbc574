"""The `run` job: replays a recipe on its base and exports the result.

Torch is loaded only when a step must be measured, a tensor calculated, an adapter written, or the result verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from surgeon.backend.data.required_data import require_data
from surgeon.backend.jobs.verify import verify_checkpoint
from surgeon.backend.open_base import open_base
from surgeon.backend.replay import replay
from surgeon.core.checkpoint.base_path import name_elsewhere
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.checkpoint.fit import kept_fit
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import Proof, RunJob, RunResult
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.data_paths import file_digests, rebase_data_paths
from surgeon.core.recipe.evaluation_metrics import EvaluationResult, evaluations_to_builtins
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.read_only_step import ReadOnlyStep, output_directory
from surgeon.core.recipe.recipe import Recipe, Step, recipe_from_builtins, recipe_to_builtins
from surgeon.core.recipe.resolution import Resolution
from surgeon.core.scoring.requests import requested_scores
from surgeon.errors import ArchitectureError
from surgeon.export.atomic_directory import refuse_existing, refuse_inside, written_atomically
from surgeon.export.checkpoint_writer import ADAPTER, PROOF, export_checkpoint, pretty, write_records

_UNPROVED = "--no-verify does without it, and writes the result unproved"


def run_job(request: RunJob, job: JobContext) -> RunResult:
    """Perform a `run` job.

    Raises:
        SurgeonError: the recipe does not fit, a gate is not met, or the export could not be written or proved.
    """
    recipe = recipe_from_builtins(request.recipe)
    base = open_base(recipe, "recipe", job.root, job)
    out = output_directory(recipe, request.out)
    # Before anything is measured: that may take hours.
    if out is not None:
        refuse_existing(out)
        refuse_inside(out, base.structure.checkpoint.path)
    resolution = Resolution(recipe, base.structure.checkpoint.fingerprint, file_digests(job.root))
    current = resolution.current(recipe.steps)
    require_data(msgspec.structs.replace(recipe, steps=current), job.root)
    _judge_base(base, current, job, writes=out is not None, proves=out is not None and request.verify)
    with FileStamps(base.structure.checkpoint).watched() as files:
        return _carried_out(recipe, base, out, files, request, job)


def _carried_out(
    recipe: Recipe, base: Draft, out: Path | None, files: FileStamps, request: RunJob, job: JobContext
) -> RunResult:
    """Replay a recipe on its base, whose `files` are watched, and export the result to `out`, if anywhere."""
    results: list[EvaluationResult] = []
    draft, recipe = replay(recipe, base, request, job, _evaluation_of(recipe, base, results, job))
    files.add(*draft.checkpoints)
    plan = compile_plan(draft)
    proof = None
    if out is not None:
        called = name_elsewhere(recipe.base.model, job.root)
        written = rebase_data_paths(recipe, job.root, out)
        export = _Export(draft, plan, written, called, out, files, results, request.verify, job)
        proof = export.adapter() if plan.adapter_alone else export.checkpoint()
    return RunResult(
        out=None if out is None else str(out), parameters=plan.parameters, bytes=plan.nbytes,
        recipe=recipe_to_builtins(recipe), proof=proof, evaluations=evaluations_to_builtins(results),
    )  # fmt: skip


def _needs_model(step: Step) -> bool:
    """Whether a step cannot be carried out without loading the model."""
    ranked = step.operation.ranked() if step.resolved is None else ()
    scores = requested_scores([one.by for one in ranked]) if ranked else []
    return step.operation.needs_model or any(kind.needs != "weights" for kind in scores)


def _judge_base(base: Draft, steps: Sequence[Step], job: JobContext, *, writes: bool, proves: bool) -> None:
    """Refuse a base that cannot be loaded as its class where that is needed, before anything is measured or written.

    Of one that is only written, unproved, what is known to be wrong with it is told.
    """
    checkpoint = base.structure.checkpoint
    quantised = base.structure.quantisation is not None
    if quantised and any(isinstance(one.operation, LearningStep) for one in steps):
        return  # the step refuses it, whether it can be loaded or not
    needs_model = any(map(_needs_model, steps))
    if quantised and not needs_model and _is_unread(checkpoint):
        return  # it is proved by its bytes
    if needs_model or proves:
        _require_fit(checkpoint, hint="" if needs_model else _UNPROVED)
    elif writes:
        fit = kept_fit(checkpoint)
        if fit is not None and not fit.whole:
            job.warn(f"{checkpoint.path.name} {fit.text}")


def _is_unread(checkpoint: Checkpoint) -> bool:
    from surgeon.backend.model.quantised_models import unread_quantisation

    return unread_quantisation(checkpoint) is not None


def _require_fit(checkpoint: Checkpoint, hint: str) -> None:
    """Refuse a base that does not fit. `hint` is added to what is said of one that cannot be loaded here at all."""
    from surgeon.backend.model.fit import require_fit

    try:
        require_fit(checkpoint)
    except ArchitectureError as error:
        more = "; ".join(filter(None, (error.hint, hint)))
        raise ArchitectureError(error.what, where=error.where, allowed=error.allowed, hint=more) from error


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
    """A model to be written to `out`. `recipe` is as it stands there; `base` is what other programs call its base.

    files: those of the base, which must not change until all is written.
    """

    draft: Draft
    plan: Plan
    recipe: Recipe
    base: str
    out: Path
    files: FileStamps
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
        proof = verify_checkpoint(self._open(directory), self.draft, self.job) if self.verify else None
        self.files.check()  # the last moment at which nothing is published
        return proof

    def _open(self, directory: Path) -> Checkpoint:
        return open_checkpoint(directory, trust_remote_code=self.draft.structure.checkpoint.trust_remote_code)

    def adapter(self) -> Proof | None:
        """Write a PEFT adapter alone, where the base's weights are as they were; return the proof."""
        from surgeon.backend.device import choose_device
        from surgeon.backend.verification.adapter_verification import prove_adapter

        with written_atomically(self.out, self.job.warn) as directory:
            self._proceed(0, "writing")
            self._write_adapter(self.draft.structure.checkpoint, self.base, directory)
            write_records(self.plan, self.recipe, directory, self.results)
            proof = None
            if self.verify:
                self._proceed(1, "verifying")
                proof = prove_adapter(self.draft, directory, choose_device(self.job.device))
                (directory / PROOF).write_bytes(pretty(proof))
            self.files.check()
        return proof

    def _proceed(self, done: int, what: str) -> None:
        self.job.stop_if_cancelled()
        self.job.progress(done, 2, "steps", what)

    def _write_adapter(self, base: Checkpoint, called: str, directory: Path) -> None:
        """Write the draft's adapters for a checkpoint, which the adapter's config calls `called`."""
        from surgeon.backend.device import choose_device
        from surgeon.backend.disk_faults import disk_faults
        from surgeon.backend.model.adapters import write_adapter
        from surgeon.backend.model.loading import load_model

        model = load_model(base, None, choose_device(self.job.device)).model
        with disk_faults():
            write_adapter(model, self.plan, called, self.recipe.seed, directory)
