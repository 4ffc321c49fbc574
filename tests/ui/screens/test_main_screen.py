"""The main screen, driven by keys and clicks: layout, panes, filter, themes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.fit import Fit, keep_fit
from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from tests.ui.app_driver import AppDriver, Drive, fake_worker


async def test_the_first_screen_lists_every_layer_and_says_how_to_go_on(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        assert [row.position for row in driver.state.rows] == list(range(6))
        assert "▶  0" in driver.text
        assert "tiny-llama" in driver.line("surgeon")
        assert "S measures importance" in driver.text
        assert len(driver.text.splitlines()) == 24

    await drive(scenario)


async def test_the_bar_at_the_top_says_that_weights_are_quantised(tiny: Path) -> None:
    """By the method's name, on a narrow screen too."""
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    app = SurgeonApp(Session.open(str(tiny)), fake_worker())
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert "quantised: fp8" in AppDriver(app, pilot).line("surgeon")


async def test_a_key_that_does_nothing_now_says_why(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        for key, reason in (
            ("u", "this is the base"),
            ("x", "no job"),
            ("s", "no scores yet"),
            ("O", "nothing is drafted"),
        ):
            await driver.press(key)
            assert reason in driver.text

    await drive(scenario)


async def test_a_terminal_that_is_too_small_says_what_it_needs(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        assert "needs 80×24" in driver.text
        assert "60×16" in driver.text

    await drive(scenario, size=(60, 16))


async def test_a_wide_terminal_shows_table_layer_and_recipe_at_once(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("j", "d", "enter")
        assert "5 layers" in driver.text
        assert "self_attn.q_proj" in driver.text
        assert "✓ prune 1" in driver.text

    await drive(scenario, size=(120, 36))


async def test_a_click_chooses_a_row_and_a_click_on_a_score_sorts(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        await driver.pilot.click("#layers", offset=(5, 4))
        assert driver.state.current_row.key == "3"
        await driver.pilot.click("#layers", offset=(70, 0))
        await driver.pilot.pause()
        assert driver.state.sort == ("weight_norm", True)

    await drive(scenario)


@pytest.mark.parametrize("theme", ["surgeon-light", "nord", "textual-light", "ansi-dark"])
async def test_every_theme_paints_the_screen(session: Session, monkeypatch: pytest.MonkeyPatch, theme: str) -> None:
    monkeypatch.setenv("TEXTUAL_THEME", theme)
    app = SurgeonApp(session, fake_worker())
    async with app.run_test(size=(120, 36)) as pilot:
        driver = AppDriver(app, pilot)
        await driver.press("d")
        assert app.theme == theme
        assert app.screen.styles.background.brightness > 0.5 or app.current_theme.dark
        assert "6→5 layers" in driver.text
        app.theme = "surgeon-dark"
        await driver.press("enter")
        assert "pruned·1" in driver.text


async def test_slash_lists_only_what_fits_and_esc_lists_all_again(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("j", "j", "f", "enter", "slash")
        await driver.type("frozen")
        await driver.press("enter")
        assert "only frozen: 1 of 6 rows" in driver.text
        assert "▶  2" in driver.text
        assert "   3 " not in driver.text
        await driver.press("j", "d")
        assert "--layers 2" in driver.text
        await driver.press("escape", "escape")
        assert "only frozen" not in driver.text
        assert "   3 " in driver.text

    await drive(scenario)


async def test_what_there_is_to_know_of_the_files_is_shown_when_a_model_is_opened(tiny: Path) -> None:
    (tiny / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}')
    session = Session.open(str(tiny))
    app = SurgeonApp(session, fake_worker())
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.pause()
        text = AppDriver(app, pilot).text
        assert "1 note on its files" in text.splitlines()[0]
        assert "stale" in text
    session.close()


async def test_a_base_that_was_judged_before_and_does_not_fit_is_shown_at_once(tiny: Path) -> None:
    fit = Fit(class_name="LlamaForCausalLM", transformers="5.0", missing=("lm_head.weight",))
    keep_fit(open_checkpoint(tiny), fit)
    session = Session.open(str(tiny))
    app = SurgeonApp(session, fake_worker())
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.pause()
        text = AppDriver(app, pilot).text
        assert "! cannot be loaded" in text.splitlines()[0]
        assert "lacks lm_head.weight" in text
    session.close()
