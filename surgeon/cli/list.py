"""`surgeon list`: the scores and the operations there are."""

from __future__ import annotations

from typing import Any

import click

from surgeon.cli.command import SurgeonCommand, as_json
from surgeon.cli.figures import print_json, table


@click.command("list", cls=SurgeonCommand)
@click.argument("what", type=click.Choice(["scores", "operations"]))
@as_json
def command(what: str, as_json: bool) -> None:
    """List the scores or the operations, each with its source."""
    rows = score_rows() if what == "scores" else operation_rows()
    if as_json:
        print_json(rows)
    else:
        header = list(rows[0]) if rows else ["nothing"]
        click.echo(table(header, [[str(row[column]) for column in header] for row in rows]))


def score_rows() -> list[dict[str, Any]]:
    """Return what each score declares."""
    from surgeon.core.score import score_kinds

    kinds = sorted(score_kinds().items())
    return [{"name": name, "asks": kind.asks, "pass": kind.needs, "paper": kind.paper} for name, kind in kinds]


def operation_rows() -> list[dict[str, Any]]:
    """Return what each operation declares."""
    from surgeon.core.operation import operations

    kinds = sorted(operations().items())
    return [{"name": name, "key": kind.key, "summary": kind.summary, "paper": kind.paper} for name, kind in kinds]
