"""Executes a parsed `:` line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surgeon.ui.command_line import ParsedLine
from surgeon.ui.screens.actions.main_screen_actions import MainScreenActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.availability import needs_idle_worker
from surgeon.ui.state.pending_step import evaluate_operation


def execute_line(
    line: ParsedLine, layout: MainLayout, actions: MainScreenActions, run_command: Callable[[str], None]
) -> None:
    """Execute a line. One without options does what the command's key does: `run_command` takes the command's id.

    Raises:
        SurgeonError: it cannot be done.
    """
    options = line.options
    if line.operation is not None:
        _apply_operation(line.operation, options, layout, actions)
    elif line.command == "score" and options:
        _measure(options, layout, actions)
    elif line.command == "mark":
        layout.state.mark_selection(options.get("selection", ""))
        layout.refresh_selection()
    elif line.command == "filter":
        layout.state.filter(options.get("selection", ""))
        layout.reload()
    elif line.command == "write" and options:
        actions.files.write_recipe(options["path"])
    elif line.command == "export" and options.get("out"):
        out = Path(options["out"]).expanduser()
        actions.files.export_to(out, verify=not options.get("no_verify", False))
    else:
        run_command(line.command)


def _apply_operation(operation: str, fields: Mapping[str, Any], layout: MainLayout, actions: MainScreenActions) -> None:
    step = evaluate_operation(layout.state.session, operation, layout.state.line_fields(operation, fields))
    if step.error is not None:
        raise step.error
    actions.steps.apply(step)


def _measure(options: Mapping[str, Any], layout: MainLayout, actions: MainScreenActions) -> None:
    reason = needs_idle_worker(layout.state)
    if reason is not None:
        layout.state.set_notice(reason, "warning")
        layout.refresh_bars()
        return
    actions.scores.measure_from_line(options)
