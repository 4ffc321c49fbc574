"""`surgeon worker`: the process that holds torch and the weights."""

from __future__ import annotations

import click

from surgeon.cli.options import SurgeonCommand


@click.command("worker", cls=SurgeonCommand)
def command() -> None:
    """Take jobs on stdin and tell events on stdout, one JSON object per line.

    Other surgeons start it, here or elsewhere: surgeon score MODEL --worker "ssh gpu-box surgeon worker".
    """
    from surgeon.backend.worker import main

    main()
