"""`surgeon demo`: fetches the demo model."""

from __future__ import annotations

import click

from surgeon.cli.formatting import print_json
from surgeon.cli.options import SurgeonCommand, as_json
from surgeon.cli.progress_output import Narrator


@click.command("demo", cls=SurgeonCommand)
@click.option("--open", "then_open", is_flag=True, help="Open it afterwards.")
@as_json
@click.pass_context
def command(context: click.Context, then_open: bool, as_json: bool) -> None:
    """Fetch SmolLM2-135M-Instruct, once, and print its directory. Afterwards `demo` is a model's name."""
    from surgeon.client import run_job

    narrator = context.ensure_object(Narrator)
    path = run_job("demo", {}, narrator.hear)["path"]
    narrator.finish()
    if as_json:
        print_json({"path": path})
    else:
        click.echo(path)
    if then_open:
        from surgeon.cli.commands.open import open_model

        open_model(context, str(path))
