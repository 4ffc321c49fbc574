"""The one table of commands. Key bindings, footer, help, palette and the `:` line are all made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from surgeon.core.recipe.operation import operations
from surgeon.ui.state.screen_state import Room

if TYPE_CHECKING:
    from surgeon.ui.screens.main_screen import MainScreen

Handler = Callable[["MainScreen"], None]
Reason = Callable[[Room], str | None]

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

_BOTH = ("room", "draft")


@dataclass(frozen=True)
class Command:
    """One thing a person can do.

    reason: why it can not be done now, or None.   footer: its words in the key strip; empty keeps it out.
    modes: where the footer shows it.   rank: the lower, the further left it stands there.
    """

    id: str
    keys: tuple[str, ...]
    title: str
    group: str
    handler: Handler
    reason: Reason = lambda room: None
    footer: str = ""
    modes: tuple[str, ...] = ("room",)
    rank: int = 50

    @property
    def key_text(self) -> str:
        """Its first key as it is written for people."""
        return _KEY_NAMES.get(self.keys[0], self.keys[0]) if self.keys else ""

    @property
    def keys_text(self) -> str:
        """All of its keys."""
        return " ".join(_KEY_NAMES.get(key, key) for key in self.keys)


def _no_proposal(room: Room) -> str | None:
    if room.proposal is None:
        names = ", ".join(f"{kind.key} {name.replace('_', '-')}" for name, kind in operations().items())
        return f"nothing is drafted: {names}"
    return None


def _not_applicable(room: Room) -> str | None:
    if room.proposal is not None and room.proposal.error is not None:
        return str(room.proposal.error)
    return None


def _no_undo(room: Room) -> str | None:
    return None if room.session.position else "nothing to undo: this is the base"


def _no_redo(room: Room) -> str | None:
    return None if room.session.position < len(room.session.steps) else "nothing to redo: this is the newest step"


def _busy(room: Room) -> str | None:
    return f"{room.job_title} is under way: x cancels it" if room.job_title else None


def _idle(room: Room) -> str | None:
    return None if room.job_title else "no job is under way"


def _nothing_pending(room: Room) -> str | None:
    return None if room.session.plan.pending else "every applied step is carried out"


def _unscored(room: Room) -> str | None:
    return None if room.columns else "no scores yet: S measures them"


def _no_steps(room: Room) -> str | None:
    return None if room.session.position or room.session.unsaved else "no steps yet: the recipe would be empty"


def _one_stack(room: Room) -> str | None:
    return None if len(room.session.structure.stacks) > 1 else "this model has one stack of layers"


def _draft(name: str, screen: MainScreen) -> None:
    screen.draft(name)


_COMMON = ("expand", "freeze", "masked_lora", "prune")
"""What the key line names first: the rest may not fit."""


def _short(name: str) -> str:
    """Return one word of an operation's name that tells it apart: its last, or its first where others end in that."""
    first, _, last = name.rpartition("_")
    return first if first and sum(other.endswith(f"_{last}") for other in operations()) > 1 else last


def _operation_commands() -> list[Command]:
    return [
        Command(
            f"draft.{name}", (kind.key,), f"{name.replace('_', '-')}: {kind.summary}", "Operate", partial(_draft, name),
            footer=_short(name), rank=20 + rank,
        )
        for rank, (name, kind) in enumerate(sorted(operations().items(), key=lambda item: item[0] not in _COMMON))
    ]  # fmt: skip


def _moving() -> list[Command]:
    return [
        Command("down", ("j", "down"), "down", "Move", lambda on: on.move(1)),
        Command("up", ("k", "up"), "up", "Move", lambda on: on.move(-1)),
        Command("top", ("g", "home"), "to the first", "Move", lambda on: on.move(-(10**9))),
        Command("bottom", ("G", "end"), "to the last", "Move", lambda on: on.move(10**9)),
        Command("page-down", ("ctrl+d", "pagedown"), "half a page down", "Move", lambda on: on.page(1)),
        Command("page-up", ("ctrl+u", "pageup"), "half a page up", "Move", lambda on: on.page(-1)),
        Command("right", ("right", "l"), "next score; in a draft: one layer more", "Move",
                lambda on: on.sideways(1), footer="more", modes=("draft",), rank=20),
        Command("left", ("left", "h"), "previous score; in a draft: one layer less", "Move",
                lambda on: on.sideways(-1), footer="less", modes=("draft",), rank=21),
        Command("next-pane", ("tab",), "next pane", "Move", lambda on: on.next_pane(1)),
        Command("previous-pane", ("shift+tab",), "previous pane", "Move", lambda on: on.next_pane(-1)),
        Command("pane.layers", ("1",), "layers", "Move", lambda on: on.show_pane("layers")),
        Command("pane.detail", ("2",), "the layer in detail", "Move", lambda on: on.show_pane("detail")),
        Command("pane.recipe", ("3",), "the recipe", "Move", lambda on: on.show_pane("recipe")),
        Command("filter", ("slash",), "list some: frozen, lora, marked, 0-7, lowest 8 by SCORE", "Move",
                lambda on: on.command_line("filter ")),
        Command("stack", ("right_square_bracket",), "next stack of layers", "Move", lambda on: on.next_stack(),
                _one_stack),
    ]  # fmt: skip


def _marking() -> list[Command]:
    return [
        Command("mark", ("space",), "mark, or unmark", "Mark", lambda on: on.mark(), footer="mark",
                modes=_BOTH, rank=10),
        Command("range", ("v",), "start or end a range", "Mark", lambda on: on.toggle_range(), footer="range", rank=67),
        Command("extend-down", ("shift+down",), "range downwards", "Mark", lambda on: on.move(1, extend=True)),
        Command("extend-up", ("shift+up",), "range upwards", "Mark", lambda on: on.move(-1, extend=True)),
        Command("mark-where", ("asterisk",), "mark a selection: lowest 4 by SCORE", "Mark",
                lambda on: on.command_line("mark ")),
    ]  # fmt: skip


def _operating() -> list[Command]:
    return [
        *_operation_commands(),
        Command("apply", ("enter",), "apply the draft; in a list: go there", "Operate", lambda on: on.enter(),
                _not_applicable, footer="apply", modes=("draft",), rank=5),
        Command("leave", ("escape",), "leave the draft, the range, the marks, the filter", "Operate",
                lambda on: on.leave(), footer="leave", modes=("draft",), rank=40),
        Command("options", ("O",), "options of the draft", "Operate", lambda on: on.options(), _no_proposal,
                footer="options", modes=("draft",), rank=30),
        Command("undo", ("u",), "undo", "Operate", lambda on: on.undo(), _no_undo, footer="undo", rank=15),
        Command("redo", ("ctrl+r",), "redo", "Operate", lambda on: on.redo(), _no_redo),
    ]  # fmt: skip


def _measuring() -> list[Command]:
    return [
        Command("score", ("S",), "choose scores and measure them", "Measure", lambda on: on.choose_scores(), _busy,
                footer="score", rank=8),
        Command("sort", ("s",), "sort by the underlined score", "Measure", lambda on: on.cycle_sort(), _unscored),
        Command("learn", ("y",), "carry out applied steps that have still to be learned", "Measure",
                lambda on: on.errands.lessons.catch_up(), lambda room: _nothing_pending(room) or _busy(room)),
        Command("cancel", ("x",), "cancel the job; again: end the worker", "Measure", lambda on: on.cancel(), _idle),
        Command("restart", ("r",), "restart the worker", "Measure", lambda on: on.restart(), _busy),
        Command("compare", ("c",), "compare with the base", "Measure", lambda on: on.errands.compare()),
        Command("log", ("L",), "what the worker said", "Measure", lambda on: on.show_log()),
    ]  # fmt: skip


def _filing() -> list[Command]:
    return [
        Command("write", ("w",), "write the recipe", "Files", lambda on: on.write(), _no_steps, footer="write",
                rank=65),
        Command("export", ("E",), "export the model", "Files", lambda on: on.export(), _busy, footer="export", rank=66),
    ]  # fmt: skip


def _other() -> list[Command]:
    return [
        Command("line", ("colon",), "type a command", "Other", lambda on: on.command_line(), footer="type",
                modes=_BOTH, rank=61),
        Command("palette", ("ctrl+p",), "find a command", "Other", lambda on: on.app.action_command_palette()),
        Command("help", ("question_mark",), "help", "Other", lambda on: on.show_help(), footer="help",
                modes=_BOTH, rank=60),
        Command("quit", ("q",), "quit", "Other", lambda on: on.quit(), footer="quit", rank=70),
    ]  # fmt: skip


@cache
def commands() -> tuple[Command, ...]:
    """Return every command, in the order in which the help lists them."""
    return (*_moving(), *_marking(), *_operating(), *_measuring(), *_filing(), *_other())


def command_of(name: str) -> Command:
    """Return a command by its id."""
    return next(command for command in commands() if command.id == name)
