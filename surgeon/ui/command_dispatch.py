"""Carries out a parsed `:` line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.ui.commands import command_of
from surgeon.ui.state.command_line import Line
from surgeon.ui.state.pending_step import propose

if TYPE_CHECKING:
    from surgeon.ui.screens.main_screen import MainScreen


def obey(screen: MainScreen, line: Line) -> None:
    """Do what was typed. A line without options does what the command's key does.

    Raises:
        SurgeonError: it cannot be done.
    """
    options = dict(line.options)
    if line.operation is not None:
        _operate(screen, line.operation, options)
    elif line.word == "score" and options:
        _score(screen, options)
    elif line.word == "mark":
        screen.room.mark_selection(options.get("selection", ""))
        screen.show_marks()
    elif line.word == "filter":
        screen.room.filter(options.get("selection", ""))
        screen.show()
    elif line.word == "write" and options:
        screen.errands.write(options["path"])
    elif line.word == "export" and options.get("out"):
        out = Path(options["out"]).expanduser()
        screen.errands.export_to(out, verify=not options.get("no_verify", False))
    else:
        screen.action_command(line.word)


def _operate(screen: MainScreen, operation: str, fields: Mapping[str, Any]) -> None:
    proposal = propose(screen.room.session, operation, fields)
    if proposal.error is not None:
        raise proposal.error
    screen.errands.lessons.do(proposal)


def _score(screen: MainScreen, options: dict[str, Any]) -> None:
    reason = command_of("score").reason(screen.room)
    if reason is not None:
        screen.room.say(reason, "warning")
        screen.show_message()
        return
    names = options.pop("by", ("all",))
    screen.errands.score(names, options.pop("data", screen.surgeon.data), **options)
