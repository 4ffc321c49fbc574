"""Opens the terminal interface, or shows the help where there is no terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from surgeon.cli.progress_output import on_terminal
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.session import Session


def open_model(
    context: click.Context, model: str, recipe: Path | None = None, trust_remote_code: bool = False, **settings: Any
) -> None:
    """Open a model in the interface; where there is no terminal, show the help instead.

    Raises:
        CheckpointError: there is no such model, terminal or not.
    """
    if not on_terminal(sys.stdout) or not reads_keys():
        locate_model(model)
        show_help(context)
        return
    session = Session.open(model, recipe, trust_remote_code=trust_remote_code)
    from surgeon.ui.app import run_app
    from surgeon.ui.open_request import OpenRequest

    status = run_app(session, **settings)
    while isinstance(status, OpenRequest):
        status = run_app(Session.open(status.model, status.recipe, trust_remote_code=trust_remote_code), **settings)
    if status:
        context.exit(status)


def reads_keys() -> bool:
    """Whether a person can press keys: stdin is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def show_help(context: click.Context) -> None:
    """Print the help of the whole program."""
    click.echo(context.find_root().get_help())
