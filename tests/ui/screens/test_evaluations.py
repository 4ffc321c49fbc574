"""Steps that look at the model: measured when they are asked for, told apart from what is not measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from tests.backend.training_recipes import pupil
from tests.ui.app_driver import AppDriver, fake_worker


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SurgeonApp]:
    """The screen on a tiny model, with a real worker."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session = Session.open(str(pupil(tmp_path)), tmp_path / "r.yaml")
    yield SurgeonApp(session, device="cpu")
    session.close()


async def _typed(driver: AppDriver, text: str) -> None:
    await driver.press("colon")
    await driver.type(text)
    await driver.press("enter")


async def test_an_evaluation_is_measured_at_once_and_its_figure_stands_at_the_step(app: SurgeonApp) -> None:
    """With its error and the base's beside it, in the recipe and in the comparison; gates say met or not met."""
    async with app.run_test(size=(160, 36)) as pilot:
        driver = AppDriver(app, pilot)
        await _typed(driver, "prune --layers 1")
        await driver.press("m", "enter")
        assert "DRAFT" in driver.text
        await driver.press("enter")
        await driver.job_ended()
        line = driver.line("✓ evaluate")
        assert "perplexity" in line
        assert "±" in line
        assert "(base" in line
        await driver.press("c")
        assert "±" in driver.line("perplexity")
        await driver.press("escape")
        await _typed(driver, 'require --perplexity "{at_most: 1.0}"')
        await driver.job_ended()
        assert "✗" in driver.line("✗ require")
        assert "not met: at most 1" in driver.text
        await _typed(driver, 'require --perplexity "{at_most: 1000000}"')
        await driver.job_ended()
        assert "✓ met: at most 1e+06" in driver.text
        await driver.press("u", "u", "u", "u")
        await _typed(driver, "freeze --layers 0")
        await driver.press("c")
        assert "nothing is measured after the last edit" in driver.text


async def test_data_that_are_not_there_make_no_step(app: SurgeonApp) -> None:
    """Neither an evaluation nor a training; the line stays open and says so."""
    async with app.run_test(size=(120, 36)) as pilot:
        driver = AppDriver(app, pilot)
        for line in ("evaluate --data nosuch.jsonl", "train --objective lm --data nosuch.jsonl"):
            await _typed(driver, line)
            assert "there is no file" in driver.text
            assert driver.session.position == 0
            await driver.press("escape")


async def test_an_evaluation_that_was_not_carried_out_has_no_tick(tmp_path: Path) -> None:
    """Of a recipe that was opened: `y` measures it."""
    session = Session.open(str(pupil(tmp_path)))
    session.apply(session.step("evaluate", {}))
    app = SurgeonApp(session, fake_worker())
    async with app.run_test(size=(120, 36)) as pilot:
        driver = AppDriver(app, pilot)
        assert "1 … evaluate" in driver.text
        assert "y measures it" in driver.text
    session.close()
