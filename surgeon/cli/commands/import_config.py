"""`surgeon import-config`: turns a config file of another tool into a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from surgeon.cli.foreign_config import import_config
from surgeon.cli.options import SurgeonCommand
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.core.checkpoint.atomic_files import write_text
from surgeon.core.interchange.config_format import config_formats
from surgeon.core.recipe.recipe import dump_recipe
from surgeon.core.recipe.yaml_document import read_document
from surgeon.errors import RecipeError


@click.command("import-config", cls=SurgeonCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="The model it is for, where the file does not say.")
@click.option("--format", "name", metavar="NAME", help="What the file is; by default its keys tell.")
@click.option("--out", metavar="RECIPE", type=click.Path(path_type=Path), help="Write the recipe there.")
@click.pass_obj
def command(reporter: ConsoleReporter, /, file: Path, model: str | None, name: str | None, out: Path | None) -> None:
    """Print the recipe that says what a config FILE of another tool says.

    That is slices of mergekit, trainable parameters of axolotl, Spectrum or LLaMA-Factory, adapters of PEFT. What no
    step can say is refused by its key; keys that say nothing of layers are named and left out.
    """
    known = config_formats()
    if name is not None and name not in known:
        raise RecipeError(f"{name!r} is no format", where="--format", allowed=", ".join(sorted(known)))
    if out is not None and out.exists():
        raise RecipeError("is there already", where=str(out), hint="choose another name")
    root = Path.cwd() if out is None else out.absolute().parent
    recipe, notes = import_config(file, read_document(file), model, name, root)
    for note in notes:
        reporter.write_line(note)
    if out is None:
        click.echo(dump_recipe(recipe), nl=False)
    else:
        write_text(out, dump_recipe(recipe))
        reporter.write_line(f"the recipe is in {out}")
