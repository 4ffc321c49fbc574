"""`surgeon MODEL`: opens the interface."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from surgeon.cli.options import SurgeonCommand, computing
from surgeon.cli.progress_output import on_terminal
from surgeon.core.recipe.recipe import load_recipe
from surgeon.session import Session


@click.command("open", cls=SurgeonCommand, hidden=True)
@click.argument("model", required=False)
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE", help="The recipe to go on with, or to begin."
)
@click.option("--data", metavar="FILE", help="Text to measure scores on.")
@computing
@click.pass_context
def command(context: click.Context, /, model: str | None, recipe: Path | None, **settings: Any) -> None:
    """Open MODEL, or the model of a recipe, in the interface."""
    if model is None and recipe is not None:
        model = load_recipe(recipe).base.model
    if model is None:
        _show_help(context)
    else:
        open_model(context, model, recipe, **settings)


def open_model(context: click.Context, model: str, recipe: Path | None = None, **settings: Any) -> None:
    """Open a model in the interface; where there is no terminal, show the help instead."""
    if not on_terminal(sys.stdout) or not reads_keys():
        _show_help(context)
        return
    session = Session.open(model, recipe)
    from surgeon.ui.app import run_app

    status = run_app(session, **settings)
    if status:
        context.exit(status)


def reads_keys() -> bool:
    """Whether a person can press keys: stdin is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def _show_help(context: click.Context) -> None:
    click.echo(context.find_root().get_help())
