"""The app: opens the room for a session, owns the worker's desk, and leaves the terminal as it was."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterable

from textual.app import App, SystemCommand
from textual.screen import Screen

from surgeon.errors import UsageError
from surgeon.session import Session
from surgeon.ui.screens.main_screen import MainScreen
from surgeon.ui.state.job_runner import Desk
from surgeon.ui.state.screen_state import Room
from surgeon.ui.theme import DARK, DARK_THEME, LIGHT, LIGHT_THEME, own_variables

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_LEAVE_SECONDS = 5.0


class SurgeonApp(App[int]):
    """The operating room for one session. `keep_journal` says whether unsaved steps are to be recovered next time."""

    TITLE = "surgeon"
    CSS_PATH = "surgeon.tcss"
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self, session: Session, worker: str | None = None, data: str | None = None, device: str | None = None,
        dtype: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.session, self.data, self.device, self.dtype = session, data, device, dtype
        self.keep_journal = True
        self.desk = Desk(worker)
        self.room = Room(session)
        self.register_theme(DARK_THEME)
        self.register_theme(LIGHT_THEME)
        wanted = os.environ.get("TEXTUAL_THEME", "")
        self.theme = wanted if wanted in self.available_themes else DARK_THEME.name
        # Textual read its variables before our themes were known.
        self.stylesheet.set_variables(self.get_css_variables())

    def get_default_screen(self) -> Screen[None]:
        """Start in the one screen there is."""
        return MainScreen(self.room, self.desk)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Give other themes the colours that the stylesheet names and they do not."""
        return own_variables(DARK if self.current_theme.dark else LIGHT)

    def on_mount(self) -> None:
        """Restore the terminal when asked to end, and tell what was recovered."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            # Textual installs no handler: the alternate screen and mouse reports would stay on.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._signalled, number)
        recovered = self.session.recovered
        if recovered is not None:
            plural = "" if recovered.applied == 1 else "s"
            self.room.say(
                f"recovered {recovered.applied} step{plural} of a session that was interrupted\nw writes the recipe",
                "warning",
            )

    def on_ready(self) -> None:
        """Collect garbage again, but never what was loaded to get here: that alone would be a pause of milliseconds."""
        if not gc.isenabled():
            gc.freeze()
            gc.enable()

    def _signalled(self, number: signal.Signals) -> None:
        # A terminal that has gone takes no output: what waits to write to it would wait for ever.
        last_word = threading.Timer(_LEAVE_SECONDS, os._exit, (128 + number,))
        last_word.daemon = True
        last_word.start()
        self.exit(128 + number)

    def leave(self, *, keep_journal: bool) -> None:
        """Quit; `keep_journal` leaves unsaved steps for the next session."""
        self.keep_journal = keep_journal
        self.exit(0)

    async def action_quit(self) -> None:
        """Quit as `q` does: ask if steps are not saved."""
        if isinstance(self.screen, MainScreen):
            self.screen.quit()

    async def on_unmount(self) -> None:
        """Leave no worker behind."""
        await self.desk.close()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Fill the palette from the command table; what can not be done now says why."""
        from surgeon.ui.commands import commands

        if isinstance(screen, MainScreen):
            for command in commands():
                if command.group != "Move" and command.id != "palette":
                    reason = command.reason(self.room)
                    about = reason or f"{command.group} · {command.keys_text}"
                    yield SystemCommand(command.title, about, lambda name=command.id: screen.action_command(name))
        yield SystemCommand("theme", "choose the colours", self.action_change_theme)
        yield SystemCommand(
            "screenshot", "save this screen as SVG", lambda: self.set_timer(0.1, self.deliver_screenshot)
        )


def run_app(
    session: Session,
    worker: str | None = None,
    data: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> int:
    """Run the interface until the person quits, then close the session; return the exit status.

    Raises:
        UsageError: there is no terminal to draw on.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise UsageError(
            "the screen needs a terminal",
            allowed="a terminal that is not `dumb`",
            hint="`surgeon --help` lists what works without one",
        )
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)  # Textual would believe them rather than the terminal, even after a resize
    gc.disable()  # until the first paint, which it would delay by a tenth
    app = SurgeonApp(session, worker, data, device, dtype)
    try:
        app.run()
    finally:
        session.close(keep_journal=app.keep_journal and session.unsaved)
    if app.return_value is not None:
        return app.return_value
    return app.return_code or 0
