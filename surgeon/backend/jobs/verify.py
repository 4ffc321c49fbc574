"""The `verify` job: checks an export against its own recipe and, where it is at hand, its base."""

from __future__ import annotations

from pathlib import Path

import msgspec

from surgeon.backend.base import open_base
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import Proof, VerifyJob, VerifyResult
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.fold import fold, unfrozen
from surgeon.core.recipe.recipe import Recipe, load_recipe
from surgeon.errors import CheckpointError, RecipeError
from surgeon.export.checkpoint_writer import RECIPE


def verify_directory(directory: Path, draft: Draft | None, job: JobContext) -> Proof:
    """Run every check on a written checkpoint; see `export_proof.verify`."""
    from surgeon.backend.device import choose_device
    from surgeon.backend.verification.export_proof import verify

    return verify(directory, draft, choose_device(job.device), job)


def verify_job(request: VerifyJob, job: JobContext) -> VerifyResult:
    """Perform a `verify` job."""
    directory = Path(request.directory)
    if (directory / RECIPE).is_file() and (directory / "adapter_config.json").is_file():
        return VerifyResult(proof=_verify_adapter(directory, request, job))
    open_checkpoint(directory)
    draft: Draft | None = None
    missing = "not at hand"
    if (directory / RECIPE).is_file():
        recipe = _own_recipe(directory, request.base)
        try:
            draft = fold(open_base(recipe, str(directory / RECIPE)), recipe.steps)
            if compile_plan(unfrozen(draft)).pending:
                draft, missing = None, "what its steps learned is no longer kept on this machine"
        except (CheckpointError, RecipeError) as error:
            job.warn(f"not compared with the base: {error}")
    else:
        job.warn(f"not compared with the base: there is no {RECIPE}")
    proof = verify_directory(directory, draft, job)
    if draft is None:
        proof["base"] = {"passed": None, "detail": f"{missing}: nothing was compared with it"}
    return VerifyResult(proof=proof)


def _own_recipe(directory: Path, base: str | None) -> Recipe:
    recipe = load_recipe(directory / RECIPE)
    if base:
        recipe = msgspec.structs.replace(recipe, base=msgspec.structs.replace(recipe.base, model=base))
    return recipe


def _verify_adapter(directory: Path, request: VerifyJob, job: JobContext) -> Proof:
    from surgeon.backend.device import choose_device
    from surgeon.backend.verification.adapter_proof import prove_adapter

    recipe = _own_recipe(directory, request.base)
    draft = fold(open_base(recipe, str(directory / RECIPE)), recipe.steps)
    return prove_adapter(draft, directory, choose_device(job.device))
