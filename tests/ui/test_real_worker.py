"""The interface with the real worker: what is measured, cut and exported on screen is what transformers loads."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from surgeon.core.recipe.recipe import load_recipe
from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from tests.backend.tiny_models import load_plainly, save_tiny, write_tokenizer
from tests.ui.app_driver import AppDriver, worker_pid

_TEXT = '{"text": "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. "}\n'


async def test_measure_prune_expand_undo_write_and_export_end_in_a_model_that_loads(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    write_tokenizer(model)
    data = tmp_path / "text.jsonl"
    data.write_text(_TEXT * 40)
    session = Session.open(str(model), tmp_path / "slim.yaml")
    app = SurgeonApp(session, data=str(data))
    async with app.run_test(size=(120, 36)) as pilot:
        driver = AppDriver(app, pilot)
        await driver.press("colon")
        await driver.type("score --by block_influence,weight_norm --sequences 4 --length 32")
        await driver.press("enter")
        await driver.job_ended()
        assert set(session.scores) == {"block_influence", "weight_norm"}
        assert not any(map(driver.state.is_stale, driver.state.visible_columns))
        await driver.press("asterisk")
        await driver.type("lowest 2 by block_influence")
        await driver.press("enter", "d", "enter", "e", "enter", "u", "w")
        assert load_recipe(tmp_path / "slim.yaml").steps == session.steps[:1]
        await driver.press("E", "end", "ctrl+u")
        await driver.type(str(tmp_path / "out"))
        await driver.press("enter")
        await driver.job_ended()
        assert "proven equal" in driver.text
    session.close()
    assert load_plainly(tmp_path / "out").config.num_hidden_layers == 4


@pytest.mark.slow
async def test_the_demo_model_s_worker_is_killed_while_it_measures_and_a_second_one_finishes(demo_model: Path) -> None:
    session = Session.open(str(demo_model))
    app = SurgeonApp(session)
    async with app.run_test(size=(80, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await driver.press("G", "d", "enter", "colon")
        await driver.type("score --by block_influence --sequences 4 --length 128")
        await driver.press("enter")
        columns = driver.state.score_columns.by_name
        await driver.wait_until(lambda: "block_influence" in columns and columns["block_influence"].values, 120)
        if driver.runner.running is not None:
            os.kill(worker_pid(driver.runner), signal.SIGKILL)
            await driver.job_ended()
            assert "SIGKILL" in driver.text
        assert session.position == 1
        assert columns["block_influence"].values
        await driver.press("colon")
        await driver.type("score --by block_influence --sequences 2 --length 64")
        await driver.press("enter")
        await driver.wait_until(lambda: driver.state.job_title is None and "block_influence" in session.scores, 120)
        assert len(session.scores["block_influence"].values) == 29
    session.close()
