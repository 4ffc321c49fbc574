"""`surgeon export-config`: writes a recipe down for another tool."""

from __future__ import annotations

from pathlib import Path

import click

from surgeon.cli.foreign_config import exported_model
from surgeon.cli.options import SurgeonCommand
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.core.checkpoint.atomic_files import write_text
from surgeon.core.interchange.config_format import config_formats
from surgeon.errors import RecipeError


def _help() -> str:
    formats = "\n".join(f"  {name}: {kind.summary}" for name, kind in sorted(config_formats().items()))
    return (
        "Print the config of FORMAT that says what SOURCE says: a recipe, or a directory that `surgeon run` has "
        f"written. What the format has no words for is refused.\n\n\b\nFORMAT is one of\n{formats}"
    )


@click.command("export-config", cls=SurgeonCommand, help=_help())
@click.argument("name", metavar="FORMAT")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Write it there.")
@click.pass_obj
def command(reporter: ConsoleReporter, /, name: str, source: Path, out: Path | None) -> None:
    """Write a recipe down for another tool."""
    known = config_formats()
    if name not in known:
        raise RecipeError(f"{name!r} is no format", where="FORMAT", allowed=", ".join(sorted(known)))
    if out is not None and out.exists():
        raise RecipeError("is there already", where=str(out), hint="choose another name")
    model = exported_model(source, Path.cwd())
    try:
        written = known[name].write(model)
    except RecipeError as error:
        raise RecipeError(
            error.what,
            where=", ".join(filter(None, (str(source), error.where))),
            allowed=error.allowed,
            hint=error.hint,
        ) from error
    if model.model is None and name != "mergekit":
        reporter.write_line("the model is not named: it is what `surgeon run` writes; name the directory there")
    for note in written.notes:
        reporter.write_line(f"{name}: {note}")
    if out is None:
        click.echo(written.text, nl=False)
    else:
        write_text(out, written.text)
        reporter.write_line(f"the config is in {out}")
