"""Opens the base of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.base_path import locate_base
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.recipe.recipe import Recipe


def open_base(recipe: Recipe, where: str, root: Path) -> Draft:
    """Open the base of a recipe in the directory `root` and check its fingerprint.

    Raises:
        CheckpointError, ArchitectureError: as reading it does. RecipeError: it is another model.
    """
    checkpoint = replace(open_checkpoint(locate_base(recipe.base.model, root)), load_in=recipe.base.load_in)
    recipe.base.check(checkpoint.fingerprint, str(checkpoint.path), where)
    return draft_of(read_structure(checkpoint))
