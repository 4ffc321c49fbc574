"""The `surgeon` command: finds the command of a name and imports only that one; any other first word is a model."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from surgeon.cli.error_output import exit_status
from surgeon.cli.options import HELP_NAMES, MANNER_FLAGS, verbosity_options
from surgeon.cli.progress_output import ConsoleReporter

COMMANDS = {
    "inspect": "Show how a model is built, from its headers alone.",
    "score": "Measure how important each layer is.",
    "data": "Show how a file of data is read, and what would be trained on.",
    "compare": "Say how far measured scores agree, beside chance.",
    "ablate": "Measure what each tenth of the singular values is worth.",
    "plan": "Tell beforehand what work takes in memory, bytes and time.",
    "run": "Carry out a recipe.",
    "import-config": "Turn a config file of mergekit, axolotl, LLaMA-Factory or PEFT into a recipe.",
    "export-config": "Write a recipe down for mergekit, axolotl, LLaMA-Factory or PEFT.",
    "verify": "Prove that an exported model is what it should be.",
    "list": "List the scores, operations or objectives there are.",
    "schema": "Print the JSON Schema of recipes.",
    "demo": "Fetch a small real model to try things on.",
    "worker": "Do the jobs that another surgeon sends on stdin.",
}
"""Commands that are not operations; each is `command` in the module of its name."""

_HELP = """An operating room for language models.

`surgeon MODEL` opens a model: a directory, a hub id, or `demo`; `surgeon RECIPE.yaml` opens a recipe with its model,
and `surgeon MODEL --recipe FILE` goes on with a recipe or begins one. `surgeon open --help` lists what else opening
takes. A directory that is called like a command is reachable as ./NAME.
"""
_OWN_FLAGS = (*MANNER_FLAGS, "-h", "--help", "--version")


class SurgeonGroup(click.Group):
    """All commands, imported when they are asked for."""

    def __init__(self) -> None:
        super().__init__(
            name="surgeon", help=_HELP, subcommand_metavar="[MODEL | COMMAND] ...", context_settings=HELP_NAMES,
            params=[*verbosity_options(), _version_option()],
        )  # fmt: skip

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands; the one that opens a model needs no name."""
        return [*COMMANDS, *_operation_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of a name."""
        if cmd_name in (*COMMANDS, "open"):
            return import_module(f"surgeon.cli.commands.{cmd_name.replace('-', '_')}").command  # type: ignore[no-any-return]
        if cmd_name in _operation_names():
            from surgeon.cli.operation_command import command_of

            return command_of(cmd_name)
        return None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags in front; where no command or model follows, `open` is meant."""
        first = next((at for at, word in enumerate(args) if word not in _OWN_FLAGS), len(args))
        front = args[:first]
        asks_for_text = any(word in ("-h", "--help", "--version") for word in front)
        if not asks_for_text and (first == len(args) or args[first].startswith("-")):
            args = [*front, "open", *args[first:]]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take an unknown first word for a model."""
        if self.get_command(ctx, args[0]) is None:
            _refuse_misspelt(ctx, args[0], self.list_commands(ctx))
            args = ["open", *args]
        found = super().resolve_command(ctx, args)
        if not gc.isenabled():  # in a process of our own: what it has imported stays, and need not be looked through
            gc.freeze()
            gc.enable()
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in two lists, without importing them."""
        from surgeon.core.recipe.operation import operations

        rows = [(name.replace("_", "-"), _sentence(kind.summary)) for name, kind in sorted(operations().items())]
        for title, part in (("Commands", list(COMMANDS.items())), ("Operations", rows)):
            with formatter.section(title):
                formatter.write_dl(part)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run a command line and leave the process with its exit status."""
        if "_SURGEON_COMPLETE" in os.environ:
            super().main(args, "surgeon", **extra)
        words = list(sys.argv[1:] if args is None else args)
        reporter = ConsoleReporter()
        status = 0
        try:
            with self.make_context("surgeon", list(words), obj=reporter) as context:
                self.invoke(context)
            sys.stdout.flush()
        except BaseException as error:
            reporter.finish()
            status = exit_status(error, words, debug=reporter.debug)
        sys.exit(status)


def _operation_names() -> list[str]:
    from surgeon.core.recipe.operation import operations

    return sorted(name.replace("_", "-") for name in operations())


def _refuse_misspelt(context: click.Context, word: str, known: list[str]) -> None:
    from difflib import get_close_matches  # late: most words are spelt right

    near = get_close_matches(word, known, n=1)
    if near and not Path(word).exists() and "/" not in word:
        raise click.UsageError(
            f"{word!r} is no command, and no model of that name is here; did you mean {near[0]!r}?", context
        )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _version_option() -> click.Option:
    def show(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given and not context.resilient_parsing:
            from surgeon import __version__

            click.echo(f"surgeon {__version__}")
            context.exit()

    return click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=show, help="Show the version."
    )
