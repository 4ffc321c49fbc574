"""Measured scores on screen: how they arrive, how they are marked, how they are chosen."""

from __future__ import annotations

from pathlib import Path

from surgeon.core.scoring.score import Provenance, Score
from tests.ui.app_driver import AppDriver, Drive, fake_worker


async def test_scores_arrive_as_numbers_bars_and_dots(drive: Drive, tmp_path: Path) -> None:
    """Some layers are there, the rest are pending; then all are there."""
    resume_file = tmp_path / "resume"

    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        columns = driver.state.score_columns.by_name
        await driver.wait_until(lambda: "block_influence" in columns and len(columns["block_influence"].values) == 2)
        assert "···" in driver.text
        assert ".250" in driver.line("▶  0")
        assert "█" in driver.line("▶  0")
        assert "x cancels" in driver.text
        resume_file.touch()
        await driver.job_ended()
        assert "···" not in driver.text
        assert set(driver.session.scores) == {"block_influence", "weight_norm"}
        assert "measured" in driver.text

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--resume-file", str(resume_file)))


async def test_a_matrix_that_was_not_trained_has_a_mark_and_no_number(drive: Drive) -> None:
    """Its place in the ranking was drawn by lot."""
    names = ("mlp.up_proj", "mlp.down_proj")
    score = Score(
        name="ila", values={"1": 4.5}, matrices={"1": {"mlp.up_proj.weight": 4.375, "mlp.down_proj.weight": 3.25}},
        details={"not_trained": ["model.layers/1/mlp.down_proj"]}, provenance=Provenance(fingerprint="ff"),
    )  # fmt: skip

    async def scenario(driver: AppDriver) -> None:
        driver.state.score_columns.set_score(score)
        await driver.press("j")
        assert "4.375" in driver.line(names[0])
        assert "·" in driver.line(names[1])
        assert "3.25" not in driver.text
        assert "· was not trained" in driver.text
        await driver.press("j")
        assert "was not trained" not in driver.text

    await drive(scenario, size=(140, 50))


async def test_a_layer_that_cannot_be_measured_is_marked_and_the_others_stand(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        assert driver.state.score_columns.by_name["block_influence"].failed == {"3"}
        await driver.press("j", "j", "j")
        assert "!" in driver.line("▶  3")
        assert "failed" in driver.line("▶  3")

    await drive(scenario, worker=fake_worker("--fail", "3"))


async def test_scores_are_measured_and_marked_from_the_command_line_too(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("colon")
        await driver.type("score --by block_influence")
        await driver.press("enter")
        await driver.job_ended()
        assert set(driver.session.scores) == {"block_influence"}
        await driver.press("asterisk")
        await driver.type("lowest 3 by block_influence")
        await driver.press("enter")
        assert driver.state.marks == {"1", "2", "3"}

    await drive(scenario)


async def test_sorting_keeps_the_cursor_on_its_layer_and_marks_on_theirs(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        await driver.press("j", "space", "s")
        keys = [driver.state.rows[at].key for at in driver.state.order]
        assert keys[0] == "5"
        assert driver.state.current_row.key == "2"
        assert driver.state.marks == {"1"}

    await drive(scenario)
