"""`surgeon demo`: fetches the demo model."""

from __future__ import annotations

import click

from surgeon.cli.formatting import print_json
from surgeon.cli.options import SurgeonCommand, as_json
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.core.job_results import DemoResult
from surgeon.core.jobs import DemoJob


@click.command("demo", cls=SurgeonCommand)
@click.option("--open", "then_open", is_flag=True, help="Open it afterwards.")
@as_json
@click.pass_context
def command(context: click.Context, then_open: bool, as_json: bool) -> None:
    """Fetch SmolLM2-135M-Instruct, once, and print its directory. Afterwards `demo` is a model's name."""
    from surgeon.client import run_job

    reporter = context.ensure_object(ConsoleReporter)
    result = run_job(DemoJob(), reporter.on_event)
    assert isinstance(result, DemoResult)
    reporter.finish()
    if as_json:
        print_json({"path": result.path})
    else:
        click.echo(result.path)
    if then_open:
        from surgeon.cli.launch_ui import open_model

        open_model(context, result.path)
