"""The command line: data on stdout, narration on stderr, one file per command.

Exit status: 0 done, 1 failed, 2 wrong usage or recipe, 3 a gate not met, 130 cancelled, 141 the reader went away.
"""

from __future__ import annotations


def main() -> None:
    """Run what the command line says."""
    from surgeon.cli.group import SurgeonGroup

    SurgeonGroup().main()
