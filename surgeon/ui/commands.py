"""The one table of commands. Key bindings, key bar, help, palette and the `:` line are all generated from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from surgeon.core.recipe.operation import operations
from surgeon.ui.state import availability
from surgeon.ui.state.screen_state import ScreenState

Mode = Literal["browse", "pending"]
"""Whether a step is pending."""

_KEY_NAMES = {
    "escape": "esc",
    "asterisk": "*",
    "question_mark": "?",
    "colon": ":",
    "right_square_bracket": "]",
    "slash": "/",
    "right": "→",
    "left": "←",
    "up": "↑",
    "down": "↓",
    "shift+up": "shift+↑",
    "shift+down": "shift+↓",
    "pageup": "pgup",
    "pagedown": "pgdn",
}

_BROWSE: tuple[Mode, ...] = ("browse",)
_PENDING: tuple[Mode, ...] = ("pending",)
_BOTH: tuple[Mode, ...] = ("browse", "pending")


@dataclass(frozen=True)
class Command:
    """One thing a user can do.

    action: a Textual action of the main screen: `move(1)` calls its method `action_move`.
    reason: why it cannot be done now, or None.   footer: its label in the key bar; empty keeps it out.
    modes: when the key bar shows it.   rank: its order there, lowest first.
    """

    id: str
    keys: tuple[str, ...]
    title: str
    group: str
    action: str
    reason: Callable[[ScreenState], str | None] = availability.always
    footer: str = ""
    modes: tuple[Mode, ...] = _BROWSE
    rank: int = 50

    @property
    def key_text(self) -> str:
        """Its first key as it is displayed."""
        return _KEY_NAMES.get(self.keys[0], self.keys[0]) if self.keys else ""

    @property
    def keys_text(self) -> str:
        """All of its keys as they are displayed."""
        return " ".join(_KEY_NAMES.get(key, key) for key in self.keys)


_COMMON_OPERATIONS = ("expand", "freeze", "masked_lora", "prune")
"""The first operations in the key bar: the rest may not fit."""


def _short_name(operation: str) -> str:
    """Return one word of an operation's name that is unique: its last, or its first where another one has that."""
    first, _, last = operation.rpartition("_")
    return first if first and sum(other.endswith(f"_{last}") for other in operations()) > 1 else last


def _operation_commands() -> list[Command]:
    kinds = sorted(operations().items(), key=lambda item: item[0] not in _COMMON_OPERATIONS)
    return [
        Command(
            f"draft.{name}", (kind.key,), f"{name.replace('_', '-')}: {kind.summary}", "Operate",
            f"start_step('{name}')", footer=_short_name(name), rank=20 + rank,
        )
        for rank, (name, kind) in enumerate(kinds)
    ]  # fmt: skip


def _move_commands() -> list[Command]:
    return [
        Command("down", ("j", "down"), "down", "Move", "move(1)"),
        Command("up", ("k", "up"), "up", "Move", "move(-1)"),
        Command("top", ("g", "home"), "to the first", "Move", f"move({-(10**9)})"),
        Command("bottom", ("G", "end"), "to the last", "Move", f"move({10**9})"),
        Command("page-down", ("ctrl+d", "pagedown"), "half a page down", "Move", "move_page(1)"),
        Command("page-up", ("ctrl+u", "pageup"), "half a page up", "Move", "move_page(-1)"),
        Command("right", ("right", "l"), "next score; in a draft: one layer more", "Move", "move_sideways(1)",
                footer="more", modes=_PENDING, rank=20),
        Command("left", ("left", "h"), "previous score; in a draft: one layer less", "Move", "move_sideways(-1)",
                footer="less", modes=_PENDING, rank=21),
        Command("next-pane", ("tab",), "next pane", "Move", "next_pane(1)"),
        Command("previous-pane", ("shift+tab",), "previous pane", "Move", "next_pane(-1)"),
        Command("pane.layers", ("1",), "layers", "Move", "show_pane('layers')"),
        Command("pane.detail", ("2",), "the layer in detail", "Move", "show_pane('detail')"),
        Command("pane.recipe", ("3",), "the recipe", "Move", "show_pane('recipe')"),
        Command("filter", ("slash",), "list some: frozen, lora, marked, 0-7, lowest 8 by SCORE", "Move",
                "command_line('filter ')"),
        Command("stack", ("right_square_bracket",), "next stack of layers", "Move", "next_stack",
                availability.needs_several_stacks),
    ]  # fmt: skip


def _mark_commands() -> list[Command]:
    return [
        Command("mark", ("space",), "mark, or unmark", "Mark", "toggle_mark", footer="mark", modes=_BOTH, rank=10),
        Command("range", ("v",), "start or end a range", "Mark", "toggle_range", footer="range", rank=67),
        Command("extend-down", ("shift+down",), "range downwards", "Mark", "move(1, True)"),
        Command("extend-up", ("shift+up",), "range upwards", "Mark", "move(-1, True)"),
        Command("mark-where", ("asterisk",), "mark a selection: lowest 4 by SCORE", "Mark", "command_line('mark ')"),
    ]


def _step_commands() -> list[Command]:
    return [
        *_operation_commands(),
        Command("apply", ("enter",), "apply the draft; in the recipe: read the step", "Operate", "enter",
                availability.needs_valid_step, footer="apply", modes=_PENDING, rank=5),
        Command("leave", ("escape",), "leave the draft, the range, the marks, the filter", "Operate", "escape",
                footer="leave", modes=_PENDING, rank=40),
        Command("options", ("O",), "options of the draft", "Operate", "edit_options",
                availability.needs_pending_step, footer="options", modes=_PENDING, rank=30),
        Command("undo", ("u",), "undo", "Operate", "undo", availability.needs_applied_step, footer="undo", rank=15),
        Command("redo", ("ctrl+r",), "redo", "Operate", "redo", availability.needs_undone_step),
    ]  # fmt: skip


def _measure_commands() -> list[Command]:
    return [
        Command("score", ("S",), "choose scores and measure them", "Measure", "choose_scores",
                availability.needs_idle_worker, footer="score", rank=8),
        Command("sort", ("s",), "sort by the underlined score", "Measure", "cycle_sort", availability.needs_scores),
        Command("learn", ("y",), "carry out applied steps that lack their result or figures", "Measure",
                "train_applied_steps", availability.needs_untrained_step),
        Command("cancel", ("x",), "cancel the job; again: end the worker", "Measure", "cancel_job",
                availability.needs_running_job),
        Command("restart", ("r",), "restart the worker", "Measure", "restart_worker", availability.needs_idle_worker),
        Command("compare", ("c",), "compare with the base", "Measure", "show_comparison"),
        Command("log", ("L",), "what the worker said", "Measure", "show_log"),
    ]  # fmt: skip


def _file_commands() -> list[Command]:
    return [
        Command("write", ("w",), "write the recipe", "Files", "write_recipe", availability.needs_recipe,
                footer="write", rank=65),
        Command("export", ("E",), "export the model", "Files", "export", availability.needs_idle_worker,
                footer="export", rank=66),
    ]  # fmt: skip


def _other_commands() -> list[Command]:
    return [
        Command("line", ("colon",), "type a command", "Other", "command_line", footer="type", modes=_BOTH, rank=61),
        Command("palette", ("ctrl+p",), "find a command", "Other", "command_palette"),
        Command("help", ("question_mark",), "help", "Other", "show_help", footer="help", modes=_BOTH, rank=60),
        Command("quit", ("q",), "quit", "Other", "quit", footer="quit", rank=70),
    ]


@cache
def commands() -> tuple[Command, ...]:
    """Return every command, in the order in which the help lists them."""
    return (
        *_move_commands(),
        *_mark_commands(),
        *_step_commands(),
        *_measure_commands(),
        *_file_commands(),
        *_other_commands(),
    )


def command_by_id(command_id: str) -> Command:
    """Return a command by its id."""
    return next(command for command in commands() if command.id == command_id)
