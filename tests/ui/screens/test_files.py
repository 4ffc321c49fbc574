"""Writing, exporting and quitting on screen."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from surgeon.core.recipe.recipe import dump_recipe, load_recipe, recipe_from_builtins
from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from surgeon.ui.open_request import OpenRequest
from surgeon.ui.screens.error_dialog import ErrorDialog
from tests.faults import blocked, failing
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


async def test_a_session_without_a_journal_says_so_and_works(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state directory cannot be written: once, when it is opened."""
    monkeypatch.setenv("SURGEON_STATE", str(blocked(tmp_path / "state")))
    app = SurgeonApp(Session.open(str(tiny)), fake_worker())
    async with app.run_test(size=(120, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await pilot.pause()
        assert "a crash would lose the steps" in driver.text
        await driver.press("d", "enter")
        assert driver.session.position == 1
        assert "a crash" not in driver.text
        await driver.press("u")
        assert driver.session.position == 0
    app.session.close()


async def test_a_journal_that_fails_later_is_told_beside_what_was_done(tiny: Path) -> None:
    """The step is applied, and the next one is safe again."""
    app = SurgeonApp(Session.open(str(tiny)), fake_worker())
    async with app.run_test(size=(120, 24)) as pilot:
        driver = AppDriver(app, pilot)
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, "fsync", errno.ENOSPC)
            await driver.press("d", "enter")
        assert driver.session.position == 1
        assert "applied" in driver.text
        assert "a crash would lose the last steps" in driver.text
        await driver.press("u")
        assert "a crash" not in driver.text
    app.session.close()


async def test_results_that_a_recipe_was_changed_after_are_told(tiny: Path, tmp_path: Path) -> None:
    """They are left out, to be learned again."""
    recipe = tmp_path / "r.yaml"
    train = {"train": {"objective": "lm", "steps": 2}, "resolved": {"learned": ["0" * 16]}}
    changed = {**train, "resolved_for": {"recipe": "1" * 16}}
    plain = {"version": 1, "base": {"model": str(tiny)}, "steps": [changed]}
    recipe.write_text(dump_recipe(recipe_from_builtins(plain)))
    app = SurgeonApp(Session.open(str(tiny), recipe), fake_worker())
    async with app.run_test(size=(120, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await pilot.pause()
        assert "results of steps 1; they are left out" in driver.text
        assert driver.session.plan.pending
    app.session.close()


async def test_kept_steps_are_offered_and_opened(tiny: Path, tmp_path: Path) -> None:
    """Whatever way the model is opened: the dialog leads to the recipe that they go on from."""
    first = Session.open(str(tiny), tmp_path / "r.yaml")
    first.apply(first.step("prune", {"layers": "1"}))
    first.close(keep_journal=True)
    app = SurgeonApp(Session.open(str(tiny)), fake_worker())
    async with app.run_test(size=(80, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await driver.wait_until(lambda: "steps that were kept" in driver.text)
        assert "1 step on" in driver.text
        await driver.press("1")
    assert app.return_value == OpenRequest(str(tiny), tmp_path / "r.yaml")
    app.session.close()
