"""The app: opens the main screen for a session, owns the worker, and restores the terminal at the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable

from textual import events
from textual.app import App, SystemCommand
from textual.screen import Screen

from surgeon.core.checkpoint.fit import kept_fit
from surgeon.core.journal import Kept
from surgeon.errors import UsageError
from surgeon.session import Session
from surgeon.ui.commands import commands
from surgeon.ui.key_queue import KeyQueue
from surgeon.ui.open_request import OpenRequest
from surgeon.ui.screens.main_screen import MainScreen
from surgeon.ui.state.job_runner import JobDefaults, JobRunner
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.theme import DARK, DARK_THEME, LIGHT, LIGHT_THEME, css_variables

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_EXIT_SECONDS = 5.0
_INTERRUPT_SECONDS = 3.0


class SurgeonApp(App[int | OpenRequest]):
    """The interface of one session. `data`, `device` and `dtype` are the defaults of all jobs.

    judge_base: whether a base that has not been judged before is judged as soon as the screen is there; otherwise it is
        when a first job starts the worker.
    """

    TITLE = "surgeon"
    CSS_PATH = "surgeon.tcss"
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self, session: Session, worker: str | None = None, data: str | None = None, device: str | None = None,
        dtype: str | None = None, judge_base: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.session = session
        self.runner = JobRunner(worker)
        self.state = ScreenState(session)
        self._defaults = JobDefaults(data, device, dtype)
        self._judge_base = judge_base
        self._keys = KeyQueue(self, super().on_event)  # type: ignore[arg-type]
        self._interrupted = -math.inf
        self.register_theme(DARK_THEME)
        self.register_theme(LIGHT_THEME)
        requested = os.environ.get("TEXTUAL_THEME", "")
        self.theme = requested if requested in self.available_themes else DARK_THEME.name
        # Textual read its variables before these themes were registered.
        self.stylesheet.set_variables(self.get_css_variables())

    def get_default_screen(self) -> Screen[None]:
        """Return the main screen."""
        return MainScreen(self.state, self.runner, self._defaults)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Give other themes the variables of the stylesheet that they do not define."""
        return css_variables(DARK if self.current_theme.dark else LIGHT)

    def on_mount(self) -> None:
        """Handle signals, and say what there is to know of the base, of what was recovered and of the rest."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            # Textual installs no handler: the alternate screen and mouse reports would stay on.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._exit_on_signal, number)
        fault, recovered = self.state.base_fault, self.session.recovered
        notes = [*([fault] if fault else self.state.base_notes), *self.session.notes]
        if recovered is not None:
            plural = "" if recovered.applied == 1 else "s"
            notes.append(f"recovered {recovered.applied} step{plural} of a session that was interrupted")
            notes.append("w writes the recipe")
        if notes:
            self.state.set_notice("\n".join(notes), "error" if fault else "warning")
        if self.session.kept and recovered is None:
            self.call_after_refresh(self._offer_kept)

    def _offer_kept(self) -> None:
        from surgeon.ui.screens.quit_dialog import KeptDialog

        def chosen(kept: Kept | None) -> None:
            if kept is not None:
                self.exit(OpenRequest(self.session.model, kept.recipe))

        self.push_screen(KeptDialog(self.session.kept), chosen)

    def on_ready(self) -> None:
        """Enable garbage collection, except of what is loaded by now: that alone would pause for milliseconds."""
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        if self._judge_base and kept_fit(self.session.checkpoint) is None:
            self.run_worker(self.runner.prepare(), group="prepare", exit_on_error=False)

    def _exit_on_signal(self, number: signal.Signals) -> None:
        # A terminal that has gone takes no output: a write to it would block for ever.
        deadline = threading.Timer(_EXIT_SECONDS, os._exit, (128 + number,))
        deadline.daemon = True
        deadline.start()
        self.exit(128 + number)

    async def on_event(self, event: events.Event) -> None:
        """Hand on one key after the other."""
        if isinstance(event, (events.Key, events.Paste)) and not event.is_forwarded:
            await self._keys.take(event)
        else:
            await super().on_event(event)

    def action_help_quit(self) -> None:
        """Take ctrl+c: the first cancels the job, if there is one, the second quits as `q` does."""
        again, self._interrupted = time.monotonic() - self._interrupted < _INTERRUPT_SECONDS, time.monotonic()
        main = next((screen for screen in self.screen_stack if isinstance(screen, MainScreen)), None)
        if main is None:
            return
        if again:
            while self.screen is not main:
                self.pop_screen()
            main.action_quit()
        elif self.runner.running is not None:
            main.action_cancel_job()
            main.say("cancelling · ctrl+c again quits", "warning")
        else:
            main.say("ctrl+c again quits", "info")

    async def action_quit(self) -> None:
        """Quit as `q` does: ask if steps are not saved."""
        if isinstance(self.screen, MainScreen):
            self.screen.action_quit()

    async def on_unmount(self) -> None:
        """End the worker."""
        await self.runner.close()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Fill the palette from the command table; what cannot be done now says why."""
        if isinstance(screen, MainScreen):
            for command in commands():
                if command.group != "Move" and command.id != "palette":
                    description = command.reason(self.state) or f"{command.group} · {command.keys_text}"
                    yield SystemCommand(
                        command.title, description, lambda command_id=command.id: screen.action_command(command_id)
                    )
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
) -> int | OpenRequest:
    """Run the interface until the user quits, then close the session; return the exit status, or what to open next.

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
        os.environ.pop(name, None)  # Textual would trust them over the terminal, even after a resize
    gc.disable()  # until the first paint, which it would delay by a tenth
    app = SurgeonApp(session, worker, data, device, dtype, judge_base=True)
    try:
        app.run()
    finally:
        session.close(keep_journal=app.state.keep_journal and session.unsaved)
    if app.return_value is not None:
        return app.return_value
    return app.return_code or 0
