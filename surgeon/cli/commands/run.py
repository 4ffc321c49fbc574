"""`surgeon run RECIPE`: replays a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgeon.cli.foreign_config import import_for_run
from surgeon.cli.options import SurgeonCommand, as_json, computing
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.cli.recipe_runner import RunOptions, run_recipe
from surgeon.core.checkpoint.base_path import resolved_model_name
from surgeon.core.recipe.overrides import changed_recipe
from surgeon.core.recipe.recipe import recipe_to_builtins
from surgeon.core.recipe.yaml_document import parse_value, read_document
from surgeon.errors import UsageError


@click.command("run", cls=SurgeonCommand)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="A new directory for the result.")
@click.option("--model", metavar="MODEL", help="Use this model instead of the recipe's.")
@click.option("--dry-run", is_flag=True, help="Only show what would happen; loads no torch.")
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change one value: steps.0.prune.layers=3-5."
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Reload the result and prove it right.")
@computing
@as_json
@click.pass_obj
def command(
    reporter: ConsoleReporter, /, recipe: Path, model: str | None, overrides: tuple[str, ...],
    trust_remote_code: bool, **order: Any,
) -> None:  # fmt: skip
    """Carry out RECIPE on its base model and write the result to a new directory.

    Measured selections that are not resolved yet are measured on the way, and those that were resolved for other words,
    another base or other data are measured anew. Prints the directory; for a recipe that only
    evaluates, which needs none, what it found. RECIPE may be mergekit's YAML too: slices that are passed through.
    """
    values, root = dict(map(_pair, overrides)), recipe.absolute().parent
    if model is not None:
        values["base.model"] = resolved_model_name(model, root)
    if trust_remote_code or "base.model" in values:  # trust in the code of one model says nothing of another's
        values.setdefault("base.trust_remote_code", trust_remote_code)
    document = read_document(recipe)
    imported = import_for_run(recipe, document)
    if imported is not None:
        document = recipe_to_builtins(imported[0])
        for note in imported[1]:
            reporter.write_line(note)
    run_recipe(changed_recipe(document, recipe, values), RunOptions(root=root, where=recipe, **order), reporter)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is no KEY=VALUE", where="--set", allowed="such as steps.0.prune.layers=3-5")
    return key, parse_value(value)
