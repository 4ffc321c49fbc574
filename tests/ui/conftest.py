"""A session on a tiny checkpoint, and a runner of scenarios on the app; nothing here loads torch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from tests.ui.app_driver import AppDriver, Drive, fake_worker
from tests.ui.zero_checkpoint import write_checkpoint


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint of six layers."""
    return write_checkpoint(tmp_path / "tiny-llama")


@pytest.fixture
def session(tiny: Path) -> Iterator[Session]:
    """A session on it."""
    opened = Session.open(str(tiny))
    yield opened
    opened.close()


@pytest.fixture
def drive(session: Session) -> Drive:
    """Runs a scenario against an app on the tiny session."""

    async def run(
        scenario: Callable[[AppDriver], Awaitable[None]], *, worker: str | None = None, size: tuple[int, int] = (80, 24)
    ) -> None:
        app = SurgeonApp(session, worker or fake_worker())
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await scenario(AppDriver(app, pilot))

    return run
