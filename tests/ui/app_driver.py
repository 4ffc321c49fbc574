"""Drives the app with keys, with a fake worker behind it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual import events
from textual.pilot import Pilot

from surgeon.ui.app import SurgeonApp
from surgeon.ui.screens.main_screen import MainScreen
from surgeon.ui.state.job_runner import JobRunner

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
Drive = Callable[..., Awaitable[None]]


def fake_worker(*options: str) -> str:
    """Return the command of a fake worker."""
    return shlex.join([sys.executable, str(FAKE_WORKER), *options])


class AppDriver:
    """Presses keys and waits for their effects."""

    def __init__(self, app: SurgeonApp, pilot: Pilot[Any]) -> None:
        self.app, self.pilot = app, pilot
        self.state, self.session, self.runner = app.state, app.session, app.runner

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        """Put text where the focus is, as a terminal does with what is pasted."""
        focused = self.app.focused
        assert focused is not None
        focused.post_message(events.Paste(text))
        await self.pilot.pause()

    async def wait_until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Poll until it holds."""
        for _ in range(int(seconds / 0.02)):
            if condition():
                await self.pilot.pause()
                return
            await self.pilot.pause(0.02)
        raise AssertionError(f"timed out; the screen is\n{self.text}")

    async def job_ended(self) -> None:
        """Wait for the end of the job."""
        await self.wait_until(lambda: self.runner.running is None and self.state.job_title is None, 180)

    async def measure(self, *names: str) -> None:
        """Ask for scores; both of the cheap ones if none is named."""
        await self.press("colon")
        await self.type(f"score --by {','.join(names or ('block_influence', 'weight_norm'))}")
        await self.press("enter")

    @property
    def main_screen(self) -> MainScreen:
        return next(screen for screen in self.app.screen_stack if isinstance(screen, MainScreen))

    @property
    def text(self) -> str:
        """Return what is on screen."""
        screen = self.app.screen
        return "\n".join(
            "".join(segment.text for segment in strip).rstrip() for strip in screen._compositor.render_strips()
        )

    def line(self, part: str) -> str:
        """Return the first line on screen that holds a text."""
        found = [line for line in self.text.splitlines() if part in line]
        assert found, f"no line holds {part!r}; the screen is\n{self.text}"
        return found[0]


def worker_pid(runner: JobRunner) -> int:
    """Return the process id of a worker that has greeted."""
    assert runner.client.hello is not None
    return runner.client.hello.pid
