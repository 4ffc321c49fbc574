"""`surgeon MODEL`, `surgeon RECIPE.yaml`: opens the interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgeon.cli.launch_ui import open_model, show_help
from surgeon.cli.options import SurgeonCommand, computing
from surgeon.core.checkpoint.base_path import model_name
from surgeon.core.recipe.recipe import load_recipe


@click.command("open", cls=SurgeonCommand, hidden=True)
@click.argument("model", required=False)
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE", help="The recipe to go on with, or to begin."
)
@click.option("--data", metavar="FILE", help="Text to measure scores on.")
@computing
@click.pass_context
def command(context: click.Context, /, model: str | None, recipe: Path | None, **settings: Any) -> None:
    """Open MODEL, or a RECIPE.yaml with its model, in the interface."""
    if model is not None and recipe is None and is_recipe_file(model):
        recipe, model = Path(model), None
    if model is None and recipe is not None:
        model = model_name(load_recipe(recipe).base.model, recipe.absolute().parent)
    if model is None:
        show_help(context)
    else:
        open_model(context, model, recipe, **settings)


def is_recipe_file(name: str) -> bool:
    """Whether a word names a recipe and not a model."""
    return Path(name).suffix in (".yaml", ".yml") and not Path(name).is_dir()
