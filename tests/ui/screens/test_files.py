"""Writing, exporting and quitting on screen."""

from __future__ import annotations

from pathlib import Path

from surgeon.core.recipe.recipe import load_recipe
from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from surgeon.ui.screens.error_dialog import ErrorDialog
from tests.ui.app_driver import AppDriver, Drive, fake_worker


async def test_writing_asks_for_a_name_and_what_is_written_is_the_recipe(drive: Drive, tmp_path: Path) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "enter", "w", "end", "ctrl+u")
        await driver.type(f"{tmp_path}/slim.yaml")
        await driver.press("enter")
        assert load_recipe(tmp_path / "slim.yaml").steps == driver.session.steps
        assert "recipe written to" in driver.text
        assert not driver.session.unsaved

    await drive(scenario)


async def test_exporting_says_what_it_will_take_and_where_it_went(drive: Drive, tmp_path: Path) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "enter", "E")
        assert "5 layers" in driver.text
        assert "free there" in driver.text
        await driver.press("end", "ctrl+u")
        await driver.type(str(tmp_path / "out"))
        await driver.press("enter")
        await driver.job_ended()
        assert (tmp_path / "out").is_dir()
        assert "exported to" in driver.text
        assert "proven equal" in driver.text

    await drive(scenario)


async def test_an_export_that_fails_is_told_in_full_and_loses_nothing(drive: Drive, tmp_path: Path) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "enter", "colon")
        await driver.type(f"export {tmp_path}/refused")
        await driver.press("enter")
        await driver.wait_until(lambda: isinstance(driver.app.screen, ErrorDialog))
        assert "is there already" in driver.text
        assert "refused" in driver.text
        assert "a new one" in driver.text
        await driver.press("escape")
        assert driver.session.position == 1

    await drive(scenario)


async def test_quitting_asks_when_steps_are_not_written(session: Session) -> None:
    app = SurgeonApp(session, fake_worker())
    async with app.run_test(size=(80, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await driver.press("d", "enter", "q")
        assert "recovers them" in driver.text
        await driver.press("escape")
        assert app.is_running
        await driver.press("q", "k")
        await driver.wait_until(lambda: app.return_value == 0)
    assert app.state.keep_journal


async def test_recovered_steps_are_told_and_can_be_undone(tiny: Path) -> None:
    first = Session.open(str(tiny))
    first.apply(first.step("prune", {"layers": "1"}))
    first.close(keep_journal=True)
    again = Session.open(str(tiny))
    app = SurgeonApp(again, fake_worker())
    async with app.run_test(size=(80, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await pilot.pause()
        assert "recovered 1 step" in driver.text
        await driver.press("u")
        assert again.position == 0
    again.close()
