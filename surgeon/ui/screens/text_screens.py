"""What is only read: the help, made from the command table, and the worker's log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text
from textual.app import ComposeResult
from textual.screen import ModalScreen
from textual.widget import Widget

from surgeon.core.checkpoint.locating import state_directory
from surgeon.ui.commands import commands
from surgeon.ui.state.job_runner import Desk
from surgeon.ui.state.screen_state import Room
from surgeon.ui.theme import Looks
from surgeon.ui.widgets.list_view import Lines

_KEY_CELLS = 14


class ReadingScreen(ModalScreen[None]):
    """A list of lines over the whole screen."""

    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        ("escape,q,enter,question_mark,L", "dismiss(None)", "close"),
        ("j,down", "scroll(1)", "down"),
        ("k,up", "scroll(-1)", "up"),
        ("g,home", "scroll(-100000)", "top"),
        ("G,end", "scroll(100000)", "bottom"),
        ("ctrl+d,pagedown,space", "scroll(10)", "page"),
        ("ctrl+u,pageup", "scroll(-10)", "page"),
    ]
    heading = ""

    def compose(self) -> ComposeResult:
        """Yield the list."""
        self.list = Lines(classes="reading")
        self.list.border_title, self.list.border_subtitle = self.heading, "j k scroll · esc close"
        yield self.list

    def on_mount(self) -> None:
        """Fill it."""
        self.list.set_lines(list(self.lines(self.list.looks)))
        self.list.focus()

    def lines(self, looks: Looks) -> Sequence[Text] | Iterator[Text]:
        """Return what is to be read."""
        raise NotImplementedError

    def action_scroll(self, change: int) -> None:
        """Scroll."""
        self.list.move(change)


class HelpScreen(ReadingScreen):
    """Every command, its keys, and why it can not be done now."""

    heading = "help"

    def __init__(self, room: Room, focused: Widget | None) -> None:
        super().__init__()
        self._room, self._about = room, getattr(focused, "HELP", None)

    def lines(self, looks: Looks) -> Iterator[Text]:
        """Write the groups one after the other."""
        if self._about:
            yield Text(f" {self._about}", looks.ink)
            yield Text()
        for group, members in groupby(commands(), key=lambda command: command.group):
            yield Text(f" {group}", looks.key)
            for command in members:
                reason = command.reason(self._room)
                line = Text(no_wrap=True)
                line.append(f"   {command.keys_text:<{_KEY_CELLS}} ", looks.accent if reason is None else looks.faint)
                line.append(command.title, looks.ink if reason is None else looks.faint)
                line.append(f"   {reason.splitlines()[0]}" if reason else "", looks.faint)
                yield line
            yield Text()
        yield Text(" Scores", looks.key)
        for sign, meaning in (
            ("···", "is being measured"),
            ("!", "could not be measured"),
            ("~", "was measured before the last edit"),
            ("▐█▌", "length: the value, between the lowest and the highest; colour: its rank"),
        ):
            yield Text.assemble((f"   {sign:<{_KEY_CELLS}} ", looks.accent), (meaning, looks.ink))


class LogScreen(ReadingScreen):
    """What the worker said in this session."""

    heading = "log"

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def lines(self, looks: Looks) -> Iterator[Text]:
        """Write the newest lines last."""
        yield Text(" what libraries print goes to", looks.dim)
        yield Text(f" {state_directory() / 'worker.log'}", looks.dim)
        for entry in self._desk.log:
            for part in entry.splitlines() or [""]:
                yield Text(f" {part}", looks.accent if part.startswith("──") else looks.ink)

    def on_mount(self) -> None:
        """Start at the end."""
        super().on_mount()
        self.call_after_refresh(self.action_scroll, 100000)
