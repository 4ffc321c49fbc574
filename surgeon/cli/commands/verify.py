"""`surgeon verify DIR`: proves an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgeon.cli.formatting import print_json
from surgeon.cli.options import SurgeonCommand, as_json, computing
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.cli.proof_table import failed_checks, proof_table
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.job_results import VerifyResult, not_proved
from surgeon.core.jobs import VerifyJob
from surgeon.errors import VerifyError


@click.command("verify", cls=SurgeonCommand)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="Compare with this model instead of the one its recipe names.")
@computing
@as_json
@click.pass_context
def command(context: click.Context, /, directory: Path, worker: str | None, as_json: bool, **settings: Any) -> None:
    """Reload the model in DIRECTORY as transformers does and check that it is what its recipe says.

    Exit status 1 if a check fails.
    """
    from surgeon.client import run_job

    reporter = context.ensure_object(ConsoleReporter)
    directory = directory.expanduser().absolute()
    if worker is None and not (directory / "adapter_config.json").is_file():
        open_checkpoint(directory)  # what is broken on disk is told before torch is loaded
    result = run_job(VerifyJob(directory=str(directory), **settings), reporter.on_event, worker)
    assert isinstance(result, VerifyResult)
    proof = result.proof
    reporter.finish()
    failed = failed_checks(proof)
    if as_json:
        unproved = not_proved(proof)
        # A model that could not be loaded has failed nothing, and is not what passed.
        passed = None if not failed and "keys" in unproved else not failed
        print_json({"passed": passed, **({"not_proved": unproved} if unproved else {}), "proof": proof})
    else:
        click.echo(proof_table(proof))
    if failed:
        if not as_json:  # the JSON has said it
            raise VerifyError(f"did not pass: {', '.join(failed)}", where=str(directory))
        context.exit(VerifyError.exit_code)
