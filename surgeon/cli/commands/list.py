"""`surgeon list`: the scores, the operations and the objectives there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from surgeon.cli.formatting import print_json, table
from surgeon.cli.options import SurgeonCommand, as_json

if TYPE_CHECKING:
    from surgeon.core.scoring.score_kinds import ScoreKind


@click.command("list", cls=SurgeonCommand)
@click.argument("what", type=click.Choice(["scores", "operations", "objectives"]))
@as_json
def command(what: str, as_json: bool) -> None:
    """List the scores, the operations or the objectives of learning steps, each with its source."""
    rows = {"scores": score_rows, "operations": operation_rows, "objectives": objective_rows}[what]()
    if as_json:
        print_json(rows)
    else:
        header = list(rows[0]) if rows else ["nothing"]
        click.echo(table(header, [[str(row[column]) for column in header] for row in rows]))


def score_rows() -> list[dict[str, Any]]:
    """Return what each score declares."""
    from surgeon.core.scoring.score_kinds import reads, score_kinds

    kinds = sorted(score_kinds().items())
    return [
        {
            "name": name,
            "asks": kind.asks,
            "needs": reads(kind),
            "cost": kind.cost,
            "settings": settings_text(kind),
            "paper": kind.paper,
        }
        for name, kind in kinds
    ]


def settings_text(kind: type[ScoreKind]) -> str:
    """Return a score's settings with their usual values, as `--by` takes them."""
    import msgspec

    return ", ".join(f"{name}={value}" for name, value in msgspec.to_builtins(kind()).items())


def objective_rows() -> list[dict[str, Any]]:
    """Return what each objective declares."""
    import msgspec

    from surgeon.core.recipe.objective import objectives

    def settings(kind: Any) -> str:
        fields = msgspec.structs.fields(kind)
        return ", ".join(
            f"{field.encode_name}={'null' if field.default is None else field.default}" for field in fields
        )

    return [
        {"name": name, "summary": kind.summary, "rows": kind.rows, "settings": settings(kind), "paper": kind.paper}
        for name, kind in sorted(objectives().items())
    ]


def operation_rows() -> list[dict[str, Any]]:
    """Return what each operation declares."""
    from surgeon.core.recipe.operation import operations

    kinds = sorted(operations().items())
    return [{"name": name, "key": kind.key, "summary": kind.summary, "paper": kind.paper} for name, kind in kinds]
