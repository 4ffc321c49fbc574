"""What every command has: the options about narration, and the ones that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from surgeon.cli.progress_output import ConsoleReporter

Function = TypeVar("Function", bound=Callable[..., Any])
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
MANNER_FLAGS = ("-q", "--quiet", "-v", "--verbose", "--debug")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
device = click.option("--device", metavar="NAME", help="Where to calculate: cpu, cuda, cuda:1, mps.")
dtype = click.option("--dtype", metavar="NAME", help="What to calculate in: float32, bfloat16, float16.")
worker = click.option(
    "--worker", metavar="COMMAND", help='Work there instead of here, such as "ssh gpu-box surgeon worker".'
)


def verbosity_options() -> list[click.Option]:
    """Return -q, -v and --debug. They are accepted before and after a command's name."""
    return [
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_note, help="Say nothing but errors."
        ),
        click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, callback=_note, help="Say more."),
        click.Option(["--debug"], is_flag=True, expose_value=False, callback=_note, help="Show tracebacks."),
    ]


def _note(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given and option.name is not None:
        setattr(context.ensure_object(ConsoleReporter), option.name, True)


class SurgeonCommand(click.Command):
    """A command that also takes the options about narration."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("context_settings", HELP_NAMES)
        super().__init__(*args, **settings)
        self.params += verbosity_options()


trust_remote_code = click.option(
    "--trust-remote-code", is_flag=True, help="Run code that the model brings: read it first, it can do anything."
)


def computing(function: Function) -> Function:
    """Add --device, --dtype, --worker and --trust-remote-code to a command that loads a model."""
    return device(dtype(worker(trust_remote_code(function))))
