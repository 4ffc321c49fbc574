"""The command line: data on stdout, progress and messages on stderr.

May import everything; torch only by way of the client.
Options and output that commands share go here, a command itself to `commands`.
"""

from __future__ import annotations


def main() -> None:
    """Run what the command line says."""
    import gc

    gc.disable()  # until the command is imported, see SurgeonGroup.resolve_command
    from surgeon.cli.group import SurgeonGroup

    SurgeonGroup().main()
