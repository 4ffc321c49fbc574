"""The `verify` job: checks an export against its own recipe and, where it is at hand, its base."""

from __future__ import annotations

from pathlib import Path

import msgspec

from surgeon.backend.open_base import open_base
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.job_context import JobContext
from surgeon.core.job_results import Proof, VerifyResult
from surgeon.core.jobs import VerifyJob
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold, unfrozen
from surgeon.core.recipe.data_paths import file_digests
from surgeon.core.recipe.recipe import Recipe, load_recipe
from surgeon.core.recipe.resolution import Resolution, stale_text
from surgeon.errors import CheckpointError, RecipeError
from surgeon.export.checkpoint_writer import RECIPE


def verify_checkpoint(written: Checkpoint, draft: Draft | None, job: JobContext) -> Proof:
    """Run every check on a written checkpoint; see `export_proof.verify`."""
    from surgeon.backend.device import choose_device
    from surgeon.backend.verification.export_verification import verify

    return verify(written, draft, choose_device(job.device), job)


def verify_job(request: VerifyJob, job: JobContext) -> VerifyResult:
    """Perform a `verify` job.

    Raises:
        RecipeError: the export's own recipe says one thing, and what its steps came to is of another.
    """
    directory = Path(request.directory)
    if (directory / RECIPE).is_file() and (directory / "adapter_config.json").is_file():
        return VerifyResult(proof=_verify_adapter(directory, request, job))
    written = open_checkpoint(directory, trust_remote_code=request.trust_remote_code)
    for note in written.notes:
        job.warn(f"{directory.name}: {note}")
    if not (directory / RECIPE).is_file():
        job.warn(f"not compared with the base: there is no {RECIPE}")
        return VerifyResult(proof=_alone(written, "not at hand", job))
    recipe, base = _own_recipe(directory, request, job)
    if base is None:
        return VerifyResult(proof=_alone(written, "not at hand", job))
    draft = fold(base, recipe.steps)
    if compile_plan(unfrozen(draft)).pending:
        missing = "what its steps learned is no longer kept on this machine"
        return VerifyResult(proof=_alone(written, missing, job))
    with FileStamps(base.structure.checkpoint).watched():
        return VerifyResult(proof=verify_checkpoint(written, draft, job))


def _alone(written: Checkpoint, missing: str, job: JobContext) -> Proof:
    """Check an export without its base, and say why."""
    proof = verify_checkpoint(written, None, job)
    return {**proof, "base": {"passed": None, "detail": f"{missing}: nothing was compared with it"}}


def _own_recipe(directory: Path, request: VerifyJob, job: JobContext) -> tuple[Recipe, Draft | None]:
    """Return the recipe of an export, and its base where that is at hand; the request may name another."""
    recipe = load_recipe(directory / RECIPE)
    try:
        found: Draft | None = _open_base(recipe, directory, request, job)
    except (CheckpointError, RecipeError) as error:
        job.warn(f"not compared with the base: {error}")
        found = None
    fingerprint = found.structure.checkpoint.fingerprint if found is not None else recipe.base.fingerprint
    _refuse_stale(recipe, Resolution(recipe, fingerprint, file_digests(directory)), directory / RECIPE, job)
    return recipe, found


def _open_base(recipe: Recipe, directory: Path, request: VerifyJob, job: JobContext) -> Draft:
    # That the recipe of what is to be checked trusts some code is no reason to run it here.
    base = msgspec.structs.replace(recipe.base, trust_remote_code=request.trust_remote_code)
    if request.base is not None:
        base = msgspec.structs.replace(base, model=request.base)
    root = directory if request.base is None else Path.cwd()
    return open_base(msgspec.structs.replace(recipe, base=base), str(directory / RECIPE), root, job)


def _refuse_stale(recipe: Recipe, resolution: Resolution, where: Path, job: JobContext) -> None:
    """Refuse a recipe that was changed since its steps came to what they did: it does not say what was exported.

    Data that has changed since is told of: the export is not made of it.

    Raises:
        RecipeError: it was.
    """
    for number, step in enumerate(recipe.steps):
        reason = resolution.stale(step, recipe.steps[:number])
        if reason and reason == resolution.other_data(step):
            job.warn(f"{stale_text(step, number, reason)}: run the recipe to measure it anew")
        elif reason:
            raise RecipeError(
                stale_text(step, number, reason), where=str(where),
                allowed="the recipe as the export's own run wrote it",
                hint="run the recipe again for a model that is what it says, or undo the change",
            )  # fmt: skip


def _verify_adapter(directory: Path, request: VerifyJob, job: JobContext) -> Proof:
    from surgeon.backend.device import choose_device
    from surgeon.backend.verification.adapter_verification import prove_adapter

    recipe, base = _own_recipe(directory, request, job)
    base = base or _open_base(recipe, directory, request, job)  # an adapter is nothing without it
    with FileStamps(base.structure.checkpoint).watched():
        return prove_adapter(fold(base, recipe.steps), directory, choose_device(job.device))
