"""The one table of commands. Key bindings, footer, help, palette and the `:` line are all made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from surgeon.core.operation import operations
from surgeon.ui.room import Room

if TYPE_CHECKING:
    from surgeon.ui.main_screen import MainScreen

Handler = Callable[["MainScreen"], None]
Reason = Callable[[Room], str | None]

_KEY_NAMES = {
    "escape": "esc", "asterisk": "*", "question_mark": "?", "colon": ":", "right": "→", "left": "←", "up": "↑", "down": "↓",
    "shift+up": "shift+↑", "shift+down": "shift+↓", "pageup": "pgup", "pagedown": "pgdn",
}  # fmt: skip


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


def _unscored(room: Room) -> str | None:
    return None if room.columns else "no scores yet: S measures them"


def _no_steps(room: Room) -> str | None:
    return None if room.session.position or room.session.unsaved else "no steps yet: the recipe would be empty"


def _one_stack(room: Room) -> str | None:
    return None if len(room.session.structure.stacks) > 1 else "this model has one stack of layers"


def _draft(name: str, screen: MainScreen) -> None:
    screen.draft(name)


def _operation_commands() -> list[Command]:
    return [
        Command(
            f"draft.{name}", (kind.key,), f"{name.replace('_', '-')}: {kind.summary}", "Operate", partial(_draft, name),
            footer=name.replace("masked_lora", "adapter").replace("_", "-"), rank=20 + rank,
        )
        for rank, (name, kind) in enumerate(operations().items())
    ]  # fmt: skip


@cache
def commands() -> tuple[Command, ...]:
    """Return every command, in the order in which the help lists them."""
    return (
        Command("down", ("j", "down"), "down", "Move", lambda s: s.move(1)),
        Command("up", ("k", "up"), "up", "Move", lambda s: s.move(-1)),
        Command("top", ("g", "home"), "to the first", "Move", lambda s: s.move(-(10**9))),
        Command("bottom", ("G", "end"), "to the last", "Move", lambda s: s.move(10**9)),
        Command("page-down", ("ctrl+d", "pagedown"), "half a page down", "Move", lambda s: s.page(1)),
        Command("page-up", ("ctrl+u", "pageup"), "half a page up", "Move", lambda s: s.page(-1)),
        Command("right", ("l", "right"), "next score; in a draft: one layer more", "Move", lambda s: s.sideways(1)),
        Command("left", ("h", "left"), "previous score; in a draft: one layer less", "Move", lambda s: s.sideways(-1),
                footer="→ widen", modes=("draft",), rank=20),
        Command("next-pane", ("tab",), "next pane", "Move", lambda s: s.next_pane(1)),
        Command("previous-pane", ("shift+tab",), "previous pane", "Move", lambda s: s.next_pane(-1)),
        Command("pane.layers", ("1",), "layers", "Move", lambda s: s.show_pane("layers")),
        Command("pane.detail", ("2",), "the layer in detail", "Move", lambda s: s.show_pane("detail")),
        Command("pane.recipe", ("3",), "the recipe", "Move", lambda s: s.show_pane("recipe")),
        Command("stack", ("right_square_bracket",), "next stack of layers", "Move", lambda s: s.next_stack(), _one_stack),
        Command("mark", ("space",), "mark, or unmark", "Mark", lambda s: s.mark(), footer="mark", modes=("room", "draft"), rank=10),
        Command("range", ("v",), "start or end a range", "Mark", lambda s: s.toggle_range(), footer="range", rank=11),
        Command("extend-down", ("shift+down",), "range downwards", "Mark", lambda s: s.move(1, extend=True)),
        Command("extend-up", ("shift+up",), "range upwards", "Mark", lambda s: s.move(-1, extend=True)),
        Command("mark-where", ("asterisk",), "mark a selection: lowest 4 by SCORE", "Mark", lambda s: s.command_line("mark ")),
        *_operation_commands(),
        Command("apply", ("enter",), "apply the draft; in a list: go there", "Operate", lambda s: s.enter(), _not_applicable,
                footer="apply", modes=("draft",), rank=5),
        Command("leave", ("escape",), "leave the draft, the range, the marks", "Operate", lambda s: s.leave(),
                footer="leave", modes=("draft",), rank=40),
        Command("options", ("o",), "options of the draft", "Operate", lambda s: s.options(), _no_proposal,
                footer="options", modes=("draft",), rank=30),
        Command("undo", ("u",), "undo", "Operate", lambda s: s.undo(), _no_undo, footer="undo", rank=30),
        Command("redo", ("ctrl+r",), "redo", "Operate", lambda s: s.redo(), _no_redo),
        Command("score", ("S",), "choose scores and measure them", "Measure", lambda s: s.choose_scores(), _busy,
                footer="measure", rank=8),
        Command("sort", ("s",), "sort by the underlined score", "Measure", lambda s: s.cycle_sort(), _unscored),
        Command("cancel", ("x",), "cancel the job; again: end the worker", "Measure", lambda s: s.cancel(), _idle),
        Command("restart", ("r",), "restart the worker", "Measure", lambda s: s.restart(), _busy),
        Command("log", ("L",), "what the worker said", "Measure", lambda s: s.show_log()),
        Command("write", ("w",), "write the recipe", "Files", lambda s: s.write(), _no_steps, footer="write", rank=40),
        Command("export", ("E",), "export the model", "Files", lambda s: s.export(), _busy, footer="export", rank=41),
        Command("line", ("colon",), "type a command", "Other", lambda s: s.command_line(), footer="type",
                modes=("room", "draft"), rank=61),
        Command("palette", ("ctrl+p",), "find a command", "Other", lambda s: s.app.action_command_palette()),
        Command("help", ("question_mark",), "help", "Other", lambda s: s.show_help(), footer="help", modes=("room", "draft"), rank=60),
        Command("quit", ("q",), "quit", "Other", lambda s: s.quit(), footer="quit", rank=62),
    )  # fmt: skip


def command_of(name: str) -> Command:
    """Return a command by its id."""
    return next(command for command in commands() if command.id == name)
