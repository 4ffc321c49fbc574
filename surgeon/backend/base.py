"""Opens the base of a recipe."""

from __future__ import annotations

from surgeon.architectures.reading import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.locating import locate_model
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.recipe.recipe import Recipe


def open_base(recipe: Recipe, where: str, job: JobContext | None = None) -> Draft:
    """Open a recipe's base and check its fingerprint; `job` is told what there is to know of its files.

    Raises:
        CheckpointError, ArchitectureError: as reading it does. RecipeError: it is another model.
    """
    checkpoint = open_checkpoint(locate_model(recipe.base.model), trust_remote_code=recipe.base.trust_remote_code)
    recipe.base.check(checkpoint.fingerprint, str(checkpoint.path), where)
    structure = read_structure(checkpoint)
    if job is not None:
        for note in (*checkpoint.notes, *structure.problems):
            job.warn(f"{checkpoint.path.name}: {note}")
    return draft_of(structure)
