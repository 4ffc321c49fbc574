"""What the commands that measure a model share: which model, after which steps, on which text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from surgeon.core.adapters.opened_model import recipe_on, trusting
from surgeon.core.checkpoint.base_path import model_name, resolved_model_name
from surgeon.core.recipe.recipe import Recipe, load_recipe, recipe_to_builtins

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--data", metavar="FILE", help="Text to measure on; Python's own documentation where none is given."),
    click.option("--sequences", type=click.IntRange(1), default=12, show_default=True, help="How many pieces of text."),
    click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in each piece."),
    click.option("--seed", type=int, default=0, show_default=True, help="Chooses the pieces."),
    click.option(
        "--stream/--no-stream", default=None,
        help="Leave the layers on disk, one in memory at a time; decided by what is free where nothing is said.",
    ),
    click.option("--weights-only", is_flag=True, help="Leave trained adapters out; else the model is as it computes."),
    click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE", help="Measure after these steps."),
)  # fmt: skip


def measuring(function: Function) -> Function:
    """Add the options about text, memory and recipe to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def base_recipe(model: str, recipe: Path | None, *, trust: bool) -> Recipe:
    """Return what is to be done to a model before it is measured; `trust`: code that it brings may be run."""
    if recipe is None:
        return recipe_on(model, trust=trust)
    root = recipe.absolute().parent
    named = resolved_model_name(model, root)
    loaded = trusting(load_recipe(recipe), model_name(named, root), root, trust=trust)
    return msgspec.structs.replace(loaded, base=msgspec.structs.replace(loaded.base, model=named))


def job_fields(measured: Recipe, recipe: Path | None, data: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the jobs `score` and `ablate` share."""
    root = recipe.absolute().parent if recipe is not None else Path.cwd()
    return {"recipe": recipe_to_builtins(measured), "root": str(root), "data": _data(data, measured), **settings}


def _data(data: str | None, measured: Recipe) -> str | None:
    """Return where the text is: a name from the recipe, a file here, or whatever the worker makes of it."""
    if data in measured.data:
        return measured.data[data]
    return str(Path(data).absolute()) if data and Path(data).exists() else data
