"""A recipe file with some values changed: `--set steps.0.prune.layers=3-5`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.core.recipe.recipe import Recipe, recipe_from_builtins
from surgeon.core.recipe.resolution import words_digest
from surgeon.core.recipe.yaml_document import read_document
from surgeon.errors import RecipeError


def load_changed_recipe(path: Path, values: Mapping[str, Any]) -> Recipe:
    """Read a recipe file and change it, as `changed_recipe` does.

    Raises:
        RecipeError: it cannot be read, or as there.
    """
    return changed_recipe(read_document(path), path, values)


def changed_recipe(document: Any, path: Path, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a document; `values` maps dotted paths such as `steps.0.prune.layers` to other values.

    Raises:
        RecipeError: a path leads nowhere, or the recipe does not check.
    """
    if values:
        _sign(document, str(path))
    for spot, value in values.items():
        _set(document, spot, value)
    return recipe_from_builtins(document, str(path))


def _sign(document: Any, where: str) -> None:
    """Write beside each `resolved` of an older recipe what it is for, so that a change makes it stale."""
    try:
        recipe = recipe_from_builtins(document, where)
    except RecipeError:  # it is whole only with the values; what it came to without them is not known
        _forget(document)
        return
    before = len(recipe.steps) - len(document["steps"])  # the adapter of the base is a step of its own
    for number, step in enumerate(recipe.steps):
        if step.resolved is not None and step.resolved_for is None:
            digest = words_digest(recipe, recipe.steps[:number], step.operation)
            document["steps"][number - before]["resolved_for"] = {"recipe": digest}


def _forget(document: Any) -> None:
    steps = document.get("steps") if isinstance(document, Mapping) else None
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and "resolved_for" not in step:
            step.pop("resolved", None)


def _set(document: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    spot = document
    try:
        for key in parents:
            spot = spot[int(key)] if isinstance(spot, list) else spot[key]
        if isinstance(spot, list):
            spot[int(last)] = value
        else:
            spot[last] = value
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise RecipeError(
            "leads nowhere in this recipe", where=f"--set {path}", allowed="a path such as steps.0.prune.layers"
        ) from error
