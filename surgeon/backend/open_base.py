"""Opens the base of a recipe."""

from __future__ import annotations

from pathlib import Path

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.base_path import locate_base
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.recipe.recipe import Recipe


def open_base(recipe: Recipe, where: str, root: Path, job: JobContext | None = None) -> Draft:
    """Open the base of a recipe in the directory `root` and check its fingerprint; `job` is told what to know of it.

    Raises:
        CheckpointError, ArchitectureError: as reading it does. RecipeError: it is another model.
    """
    place, trusted = locate_base(recipe.base.model, root), recipe.base.trust_remote_code
    checkpoint = open_checkpoint(place, trust_remote_code=trusted)
    recipe.base.check(checkpoint.fingerprint, str(checkpoint.path), where)
    structure = read_structure(checkpoint)
    if job is not None:
        for note in (*checkpoint.notes, *structure.problems):
            job.warn(f"{checkpoint.path.name}: {note}")
    return draft_of(structure, root)
