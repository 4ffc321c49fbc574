"""Config files of other tools, from disk to recipe and back: what `import-config`, `export-config` and `run` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.architectures.structure_reader import read_structure
from surgeon.cli.dry_run import fold_recipe
from surgeon.core.checkpoint.base_path import locate_base, name_elsewhere, resolved_model_name
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.interchange.config_format import ConfigFormat, ExportedModel, config_formats, format_of
from surgeon.core.plan.draft import draft_of
from surgeon.core.recipe.data_paths import rebase_data_paths
from surgeon.core.recipe.problems import built_in
from surgeon.core.recipe.recipe import VERSION, Recipe, load_recipe, recipe_from_builtins
from surgeon.core.recipe.yaml_document import read_document
from surgeon.errors import RecipeError, UsageError

RECIPE = "recipe.yaml"


def import_config(path: Path, plain: Any, model: str | None, name: str | None, root: Path) -> tuple[Recipe, list[str]]:
    """Return the recipe, in the directory `root`, that says what a config file says, and notes on what it does not.

    name: of the format; None to tell it by the keys.

    Raises:
        RecipeError: it is of no known format, or says what no step does; the message names the key.
    """
    plain = built_in(plain)
    kind = config_formats()[name] if name and isinstance(plain, Mapping) else format_of(plain)
    if kind is None:
        raise RecipeError(
            "is no config file that is known", where=str(path), allowed=", ".join(sorted(config_formats())),
            hint="a recipe is read by `surgeon run`; --format says what a file is",
        )  # fmt: skip
    try:
        base = model or kind.base(plain)
        if base is None:
            raise UsageError("it names no model", where=str(path), hint="say which with --model")
        base = resolved_model_name(base, root)
        imported = kind.read(plain, draft_of(read_structure(open_checkpoint(locate_base(base, root)))))
        steps = [_with_place(step, root) for step in imported.steps]
        recipe = recipe_from_builtins({"version": VERSION, "base": {"model": base}, "steps": steps}, str(path))
    except RecipeError as error:
        raise _in_file(error, path) from error
    return recipe, [f"{path.name}, {kind.name}: {note}" for note in imported.notes]


def _with_place(step: dict[str, Any], root: Path) -> dict[str, Any]:
    """Name another model as a recipe in `root` does."""
    return {
        name: {key: resolved_model_name(value, root) if key == "from" else value for key, value in fields.items()}
        for name, fields in step.items()
    }


def _in_file(error: RecipeError, path: Path) -> RecipeError:
    if error.where.startswith(str(path)):
        return error
    where = f"{path}, {error.where}" if error.where else str(path)
    return RecipeError(error.what, where=where, allowed=error.allowed, hint=error.hint)


def import_for_run(path: Path, plain: Any) -> tuple[Recipe, list[str]] | None:
    """Return the recipe that another tool's file says, where it names all that a run needs; None for a recipe.

    Raises:
        RecipeError: it is of another format; the message says how to make a recipe of it.
    """
    kind: type[ConfigFormat] | None = format_of(plain)
    if kind is None:
        return None
    if not kind.names_base:
        raise RecipeError(
            f"is no recipe but a config of {kind.name}, of which only what concerns layers is read", where=str(path),
            hint=f"surgeon import-config {path} --out recipe.yaml, and run that",
        )  # fmt: skip
    return import_config(path, plain, None, kind.name, path.absolute().parent)


def exported_model(source: Path, here: Path) -> ExportedModel:
    """Return what a recipe comes to, or an export's own recipe; its base is named as seen from `here`.

    Raises:
        RecipeError: there is no recipe, or a selection in it was not measured yet.
    """
    path = source / RECIPE if source.is_dir() else source
    if not path.is_file():
        raise RecipeError(
            "there is no recipe", where=str(path), allowed="a recipe, or a directory that `surgeon run` has written"
        )
    if format_of(read_document(path)) is not None:
        raise RecipeError("is no recipe", where=str(path), hint=f"surgeon import-config {path} --out recipe.yaml")
    root = path.absolute().parent
    folded = fold_recipe(load_recipe(path), path)
    if folded.unknown or not all(report.exact for report in folded.reports):
        raise RecipeError(
            "has selections that were not measured yet", where=str(path),
            hint="run it, and name the directory that it wrote",
        )  # fmt: skip
    written = source.is_dir() and (source / "config.json").is_file()
    base = name_elsewhere(folded.recipe.base.model, root)
    model = str(source) if written else None if folded.plan.moved else base
    recipe = rebase_data_paths(folded.recipe, root, here)
    return ExportedModel(recipe, folded.drafts[-1], folded.plan, model)
