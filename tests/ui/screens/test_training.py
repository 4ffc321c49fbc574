"""Training on screen: what it says while it runs, stopping it, and the step that comes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from tests.backend.training_recipes import pupil
from tests.ui.app_driver import AppDriver

TRAIN = "train --objective lm --data text.jsonl --held-out 20% --eval-steps 20 --max-length 24 --learning-rate 1e-3"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SurgeonApp]:
    """The screen on a tiny model, with a real worker."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session = Session.open(str(pupil(tmp_path)), tmp_path / "r.yaml")
    yield SurgeonApp(session, device="cpu")
    session.close()


async def typed(driver: AppDriver, text: str) -> None:
    await driver.press("colon")
    await driver.type(text)
    await driver.press("enter")


async def test_a_long_training_is_watched_stopped_and_taken_up_again(app: SurgeonApp) -> None:
    """Steps, speed, time left, a curve, held-out loss; what was stopped goes on; undo and redo need no worker."""
    async with app.run_test(size=(80, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await typed(driver, f"{TRAIN} --steps 3000")
        await driver.wait_until(lambda: (running := driver.runner.running) and running.training, 120)
        await driver.wait_until(lambda: "→" in driver.line("held-out loss"))
        first, second = driver.line("tokens/s"), driver.line("held-out loss")
        assert "train lm" in first
        assert "/3000" in first
        assert "left · x stops" in first
        assert second.split()[0][0] in "▁▂▃▄▅▆▇█"
        assert max(map(len, driver.text.splitlines())) <= 80
        await driver.press("x")
        await driver.job_ended()
        assert "its state is kept" in driver.text
        assert not driver.session.steps
        (state,) = Path(os.environ["SURGEON_CACHE"]).glob("learned/*.state/state.pt")
        await typed(driver, f"{TRAIN} --steps 3000")
        await driver.job_ended()
        assert not state.exists()
        assert any("going on from step" in line for line in driver.runner.log)
        assert driver.session.position == 1
        assert "learned" in driver.text
        assert "in 3000 steps" in driver.text
        await driver.press("u")
        assert driver.session.position == 0
        await driver.press("ctrl+r")
        assert not driver.session.plan.pending
        assert driver.runner.running is None


async def test_a_step_is_drafted_with_its_form_and_trained(app: SurgeonApp) -> None:
    """T opens the options, what is required first; the draft says what would be trained before anything is."""
    async with app.run_test(size=(120, 36)) as pilot:
        driver = AppDriver(app, pilot)
        await driver.press("T")
        assert app.focused is not None
        assert app.focused.id == "field-objective"
        await driver.wait_until(lambda: "lm, sft, dpo" in driver.text)
        await driver.type("lm")
        app.screen.query_one("#field-steps").focus()
        await pilot.pause()
        await driver.type("3")
        await driver.press("enter")
        assert "trains 21.7k numbers" in driver.text
        assert "surgeon train" in driver.text
        await driver.press("enter")
        await driver.job_ended()
        assert driver.session.position == 1
        assert not driver.session.plan.pending
        assert driver.session.steps[0].operation.steps == 3  # type: ignore[attr-defined]


async def test_a_recipe_opens_with_what_it_has_to_learn(app: SurgeonApp, tmp_path: Path) -> None:
    """The key y carries it out; without anything pending it says so."""
    session = app.session
    session.apply(session.step("train", {"objective": "lm", "data": "text.jsonl", "steps": 2, "max_length": 24}))
    async with app.run_test(size=(80, 24)) as pilot:
        driver = AppDriver(app, pilot)
        states = [session.plan.pending]
        await driver.press("y")
        await driver.job_ended()
        states.append(session.plan.pending)
        assert states == [True, False]
        assert session.position == 1
        await driver.press("y")
        assert "every applied step is carried out" in driver.text
