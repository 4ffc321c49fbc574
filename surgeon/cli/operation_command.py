"""One command per operation, generated from the operation's fields: each runs a recipe of one step."""

from __future__ import annotations

import inspect
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import msgspec

from surgeon.cli.dry_run import fold_recipe
from surgeon.cli.options import SurgeonCommand, as_json, computing
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.cli.recipe_runner import RunOptions, run_recipe
from surgeon.core.adapters.opened_model import recipe_on
from surgeon.core.checkpoint.atomic_files import write_text
from surgeon.core.jobs import RunResult
from surgeon.core.recipe.data_paths import rebase_data_paths
from surgeon.core.recipe.measured_selection import measured_selection
from surgeon.core.recipe.objective import ObjectiveChoice
from surgeon.core.recipe.operation import Operation, operations
from surgeon.core.recipe.recipe import Step, dump_recipe, recipe_from_builtins, step_of
from surgeon.core.recipe.yaml_document import parse_value
from surgeon.core.selection.selection import Selection
from surgeon.errors import RecipeError, UsageError

_FIELD = "field_"
_METAVARS: dict[Any, str] = {
    ObjectiveChoice: "OBJECTIVE",
    str: "TEXT",
    int: "NUMBER",
    float: "NUMBER",
    tuple: "A,B",
    list: "A,B",
}


def command_of(name: str) -> click.Command:
    """Return the command of an operation, by the command's name."""
    kind = operations()[name.replace("-", "_")]

    @click.pass_obj
    def run(reporter: ConsoleReporter, /, **values: Any) -> None:
        carry_out(kind, values, reporter)

    selected = [_bare_type(field.type) for field in msgspec.structs.fields(kind) if _selects(field.type)]
    selects = bool(selected)
    command = click.command(name, cls=SurgeonCommand, help=_help(kind, selected), short_help=kind.summary)(
        _options(run)
    )
    own = {field.encode_name for field in msgspec.structs.fields(kind)}
    command.params[:0] = [
        click.Argument(["model"]),
        *(_option(field) for field in msgspec.structs.fields(kind)),
        *([_data_option()] if selects and "data" not in own else []),
        *([_protect_option()] if selects else []),
    ]
    return command


def carry_out(kind: type[Operation], values: dict[str, Any], reporter: ConsoleReporter) -> None:
    """Build the recipe of one step that a command line says, and run it, show it, or write it down."""
    save, seed = values.pop("save_recipe"), values.pop("seed")
    model, trusted = values.pop("model"), values.pop("trust_remote_code")
    data, protect = values.pop("data", None), values.pop("protect", None)
    fields = {key.removeprefix(_FIELD): values.pop(key) for key in list(values) if key.startswith(_FIELD)}
    fields = {key.replace("-", "_"): value for key, value in fields.items() if value is not None}
    if save is not None and save.exists():
        raise RecipeError("is there already", where=str(save), hint="choose another name")
    begun = recipe_on(model, trust=trusted)
    recipe = msgspec.structs.replace(begun, seed=seed, steps=(*begun.steps, _step(kind, fields, data, protect)))
    order = RunOptions(root=Path.cwd(), **values)
    result: RunResult | None = None
    if order.out is None and save is not None and not order.dry_run:
        fold_recipe(recipe)
    else:
        result = run_recipe(recipe, order, reporter)
    if save is not None:
        done = recipe if result is None else recipe_from_builtins(result.recipe)
        write_text(save, dump_recipe(rebase_data_paths(done, Path.cwd(), save.absolute().parent)))
        reporter.write_line(f"the recipe is in {save}")


def _step(kind: type[Operation], fields: dict[str, Any], data: str | None, protect: str | None) -> Step:
    ranks = False
    for field in msgspec.structs.fields(kind):
        text = fields.get(field.encode_name)
        if text is not None and _selects(field.type):
            measured = measured_selection(text, data, protect)
            ranks, fields[field.encode_name] = ranks or measured != text, measured
    if not ranks and (data, protect) != (None, None):
        raise UsageError("--data and --protect go with layers chosen by a score", allowed='"lowest 4 by SCORE"')
    return step_of(kind.name, fields, "command line")


def _options(function: Any) -> Any:
    for decorate in (
        as_json,
        computing,
        click.option(
            "--verify/--no-verify", default=True, show_default=True, help="Reload the result and prove it right."
        ),
        click.option("--save-recipe", metavar="FILE", type=click.Path(path_type=Path), help="Write the recipe there."),
        click.option("--dry-run", is_flag=True, help="Only show what would happen; loads no torch."),
        click.option("--seed", type=int, default=0, show_default=True, help="The recipe's seed."),
        click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="A new directory for the result."),
    ):
        function = decorate(function)
    return function


def _option(field: Any) -> click.Option:
    bare = _bare_type(field.type)
    name = field.encode_name.replace("_", "-")
    settings: dict[str, Any] = {"help": _described(field), "required": field.required, "callback": _reader(bare)}
    if bare is bool:
        return click.Option([_FIELD + field.encode_name, f"--{name}/--no-{name}"], default=None, help=_described(field))
    if get_origin(bare) is Literal:
        settings["type"] = click.Choice([str(choice) for choice in get_args(bare)])
    else:
        settings["metavar"] = bare.metavar if _selects(bare) else _METAVARS.get(get_origin(bare) or bare, "YAML")
    return click.Option([_FIELD + field.encode_name, f"--{name}"], **settings)


def _reader(bare: Any) -> Any:
    def read(_: click.Context, __: click.Parameter, text: str | None) -> Any:
        if text is None or bare is str or _selects(bare):
            return text
        if (get_origin(bare) or bare) in (tuple, list) and not text.startswith("["):
            parts = [part.strip() for part in text.split(",") if part.strip()]
            return parts if _holds_words(bare) else list(map(parse_value, parts))
        return parse_value(text)

    return read


def _holds_words(bare: Any) -> bool:
    element = _bare_type(next(iter(get_args(bare)), str))
    return element is str or get_origin(element) is Literal


def _bare_type(kind: Any) -> Any:
    """Return a field's type without its annotations and without None."""
    if get_origin(kind) is Annotated:
        return _bare_type(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        inner = [_bare_type(one) for one in get_args(kind) if one is not type(None)]
        return inner[0] if len(inner) == 1 else kind
    return kind


def _selects(kind: Any) -> bool:
    bare = _bare_type(kind)
    return isinstance(bare, type) and issubclass(bare, Selection)


def _described(field: Any) -> str:
    notes = [note for note in getattr(field.type, "__metadata__", ()) if isinstance(note, msgspec.Meta)]
    text = next((note.description for note in notes if note.description), "")
    text = text[:1].upper() + text[1:] + "."
    default = field.default
    if field.required or default in (None, msgspec.NODEFAULT, ()):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text}  [default: {shown}]"


def _data_option() -> click.Option:
    return click.Option(["--data"], metavar="FILE", help="Text to measure the score on that layers are chosen by.")


def _protect_option() -> click.Option:
    return click.Option(["--protect"], metavar="LAYERS", help="Layers that a score never chooses: first,last.")


def _help(kind: type[Operation], selected: Sequence[type[Selection]]) -> str:
    parts = [kind.summary[:1].upper() + kind.summary[1:] + ".", inspect.cleandoc(kind.__doc__ or "")]
    parts += [f"Source: {kind.paper}."] if kind.paper else []
    parts += [f"{one.metavar} is {one.grammar}" for one in dict.fromkeys(selected)]
    return "\n\n".join(parts)
