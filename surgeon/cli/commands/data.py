"""`surgeon data`: shows how a file of data is read, and which of its tokens would be trained on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from surgeon.cli.formatting import print_json, table
from surgeon.cli.options import SurgeonCommand, as_json, trust_remote_code, worker
from surgeon.cli.progress_output import ConsoleReporter, on_terminal
from surgeon.core.job_results import DataResult, ShownRow, TrainedTokens
from surgeon.core.jobs import DataJob

_MARKS = ("⟦", "⟧")


@click.command("data", cls=SurgeonCommand)
@click.argument("file")
@click.option("--model", metavar="MODEL", help="Whose tokenizer and chat template read it: shows tokens.")
@click.option("--objective", metavar="NAME", help="What would be minimised; by default what suits the rows.")
@click.option("--rows", type=click.IntRange(0), default=3, show_default=True, help="How many to show.")
@click.option("--max-length", type=click.IntRange(4), default=512, show_default=True, help="Tokens of an example.")
@worker
@trust_remote_code
@as_json
@click.pass_obj
def command(
    reporter: ConsoleReporter, /, file: str, model: str | None, objective: str | None, rows: int, max_length: int,
    worker: str | None, trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show how FILE is read: its form, its rows, and with --model its tokens and which of them are trained on.

    FILE is whatever --data takes elsewhere: a file, a data set on the hub as OWNER/NAME/CONFIG:SPLIT@REVISION, or
    python_docs. Tokens that are trained on are coloured; where there is no colour they stand in ⟦ ⟧.
    """
    from surgeon.client import run_job

    job = DataJob(
        root=str(Path.cwd()), data=file, model=model, objective=objective, shown=rows, max_length=max_length,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    result = run_job(job, reporter.on_event, worker)
    assert isinstance(result, DataResult)
    reporter.finish()
    if as_json:
        print_json(result)
    else:
        _tell(file, result)


def _tell(file: str, found: DataResult) -> None:
    few = "" if found.whole else "the first "
    click.echo(f"{file}: {found.format}, {few}{found.rows:,} rows\n")
    click.echo(table(["form", "rows"], [[name, f"{count:,}"] for name, count in found.forms.items()], right="rows"))
    for key, count in found.unread.items():
        click.echo(f"not read: {key} (in {count:,} rows)")
    if found.trained is not None:
        click.echo("\n" + _trained_text(found.trained))
    for row in found.shown:
        click.echo("\n" + _row_text(row, in_colour=on_terminal(sys.stdout) and not os.environ.get("NO_COLOR")))


def _trained_text(trained: TrainedTokens) -> str:
    text = (
        f"{trained.objective}: {trained.sequences:,} sequences of {trained.tokens:,} tokens, "
        f"{trained.trained:,} of them trained on; the longest has {trained.longest:,}"
    )
    return text + (f"\n{trained.left_out:,} rows have no answer within the length" if trained.left_out else "")


def _row_text(row: ShownRow, *, in_colour: bool) -> str:
    parts = [click.style(row.where, bold=True) if in_colour else row.where, "\n"]
    for text, is_trained in row.pieces:
        if in_colour:
            parts.append(click.style(text, fg="green" if is_trained else None, dim=is_trained is False))
        else:
            parts.append(f"{_MARKS[0]}{text}{_MARKS[1]}" if is_trained else text)
    return "".join(parts).rstrip("\n")
