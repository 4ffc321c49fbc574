"""Keys that come faster than their effects, ctrl+c, and quitting while a job runs."""

from __future__ import annotations

from pathlib import Path

from textual import events

from tests.ui.app_driver import AppDriver, Drive, fake_worker


def _burst(driver: AppDriver, *keys: str) -> None:
    for key in keys:
        character = {"colon": ":", "space": " "}.get(key, key if len(key) == 1 else None)
        driver.app.post_message(events.Key(key, character))


async def test_no_key_of_a_burst_is_lost_behind_one_that_opens_the_line(drive: Drive) -> None:
    """They are typed into the line, and are no commands of the main screen."""

    async def scenario(driver: AppDriver) -> None:
        _burst(driver, "colon", *"freeze", "space", *"--layers", "space", "0", "enter", "j", "j")
        await driver.wait_until(lambda: driver.session.position == 1 and driver.state.cursor == 2)
        assert driver.session.steps[0].operation.name == "freeze"

    await drive(scenario)


async def test_a_key_behind_a_paste_and_a_tab_lands_in_the_next_field(drive: Drive) -> None:
    """Though the form is still evaluated for what was pasted."""

    async def scenario(driver: AppDriver) -> None:
        await driver.press("a", "O")
        first = driver.app.focused
        driver.app.post_message(events.Paste("0-2"))
        _burst(driver, "tab", "7")
        await driver.wait_until(lambda: driver.app.focused is not first)
        await driver.wait_until(lambda: "7" in str(getattr(driver.app.focused, "value", "")))
        assert "7" not in str(getattr(first, "value", ""))

    await drive(scenario, size=(120, 36))


async def test_ctrl_c_cancels_the_job_and_twice_asks_to_quit(drive: Drive) -> None:
    """And never shows the framework's own hint over it."""

    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "enter")
        await driver.measure()
        await driver.wait_until(lambda: driver.state.score_columns.by_name["block_influence"].values)
        await driver.press("ctrl+c")
        await driver.job_ended()
        assert "cancelled" in driver.text
        await driver.press("ctrl+c", "ctrl+c")
        assert "keep the steps" in driver.text
        assert driver.app.is_running

    await drive(scenario, worker=fake_worker("--pause-after", "4"))


async def test_quitting_asks_while_a_job_runs(drive: Drive, tmp_path: Path) -> None:
    """Also where every step is written."""

    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.wait_until(lambda: driver.state.score_columns.by_name["block_influence"].values)
        await driver.press("q")
        assert "is under way: quitting ends it" in driver.text
        await driver.press("escape")
        assert driver.app.is_running
        assert driver.runner.running is not None
        await driver.press("q", "e")
        await driver.wait_until(lambda: driver.app.return_value == 0)

    await drive(scenario, worker=fake_worker("--pause-after", "4"))
