"""`surgeon ablate`: measures what each tenth of the singular values of a kind of matrix is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from surgeon.cli.formatting import print_json, table, value_text
from surgeon.cli.options import SurgeonCommand, as_json, computing
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.cli.scoring_options import base_recipe, job_fields, measuring
from surgeon.core.events import DecileAblated, Event
from surgeon.core.job_results import AblateResult
from surgeon.core.jobs import AblateJob
from surgeon.errors import UsageError

Row = dict[str, Any]


@click.command("ablate", cls=SurgeonCommand)
@click.argument("model")
@click.option(
    "--roles", metavar="A,B", multiple=True, required=True, help="Which matrices: mlp.up, attention.output, …"
)
@measuring
@computing
@as_json
@click.pass_obj
def command(
    reporter: ConsoleReporter, /, model: str, roles: tuple[str, ...], data: str | None, recipe: Path | None,
    worker: str | None, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Measure the loss of MODEL without each tenth of the singular values of its matrices of some roles.

    Decile 1 holds the largest singular values, 10 the smallest. Each is zeroed in all layers at once; beside the rise
    of the loss, in nats per token, stands the share of the matrices' squared norm that went with it.
    """
    from surgeon.client import run_job

    named = list(dict.fromkeys(role.strip() for part in roles for role in part.split(",") if role.strip()))
    if not named:
        raise UsageError("names no role", where="--roles", allowed="mlp.up, mlp.down, attention.output, …")
    measured = base_recipe(model, recipe, trust=settings.pop("trust_remote_code"))
    job = AblateJob(roles=tuple(named), **job_fields(measured, recipe, data, settings))
    found = run_job(job, lambda event: _on_event(reporter, event), worker)
    assert isinstance(found, AblateResult)
    result = found.ablations
    reporter.finish()
    if as_json:
        print_json(result)
    else:
        click.echo(_table(named, result["rows"]))
        click.echo(f"\nloss of the whole model: {value_text(result['base'])} nats per token")


def _on_event(reporter: ConsoleReporter, event: Event) -> None:
    if not isinstance(event.body, DecileAblated):
        reporter.on_event(event)
    else:
        row = event.body.ablation
        reporter.write_line(f"{row['role']}  decile {row['decile']}  {_rise(row)}  energy {row['energy']:.2%}")


def _rise(row: Row) -> str:
    spread = f" ± {row['error']:.2g}" if row["error"] is not None else ""
    return f"{row['rise']:+.4f}{spread}"


def _table(roles: Sequence[str], rows: Sequence[Row]) -> str:
    """Lay out a line per decile, and per role its rise and energy."""
    by_place = {(row["role"], row["decile"]): row for row in rows}
    deciles = sorted({row["decile"] for row in rows})
    lines = []
    for number in deciles:
        cells = [(by_place[role, number]) for role in roles]
        lines.append([str(number), *(text for row in cells for text in (_rise(row), f"{row['energy']:.2%}"))])
    return table(["decile", *(name for role in roles for name in (role, "energy"))], lines, right="decile energy")
