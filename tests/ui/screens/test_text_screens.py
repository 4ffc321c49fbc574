"""The screens that are only read."""

from __future__ import annotations

from tests.ui.app_driver import AppDriver, Drive


async def test_help_and_log_are_read_and_left(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("question_mark")
        assert "half a page down" in driver.text
        await driver.press("escape", "L")
        assert "what libraries print" in driver.text
        await driver.press("escape")
        assert driver.app.screen is driver.main_screen

    await drive(scenario)


async def test_the_model_is_compared_with_its_base_and_config_fields_that_changed_are_named(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("c")
        assert "config.json stays as it is" in driver.text
        await driver.press("escape", "d", "enter", "c")
        assert driver.line(" layers").split()[1:4] == ["layers", "6", "5"]
        assert driver.line("num_hidden_layers").split()[1:4] == ["num_hidden_layers", "6", "5"]
        await driver.press("escape")
        assert "pruned·1" in driver.text

    await drive(scenario)
