"""What a worker can do wrong, with a real process on a real pipe."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from tests.ui.app_driver import AppDriver, Drive, fake_worker, worker_pid


def is_alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_worker_that_crashes_leaves_its_scores_the_recipe_and_a_way_to_go_on(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "enter")
        await driver.measure()
        await driver.job_ended()
        assert "SIGKILL" in driver.text
        assert "S measures again" in driver.text
        assert "what has arrived stays" in driver.text
        assert len(driver.state.score_columns.by_name["block_influence"].values) == 2
        assert "···" not in driver.text
        assert driver.session.position == 1
        await driver.press("r")
        await driver.wait_until(lambda: "the worker is ready" in driver.text)
        assert "SIGKILL" not in driver.text

    await drive(scenario, worker=fake_worker("--crash-after", "4"))


async def test_a_worker_killed_from_outside_is_told_and_the_next_measurement_works(
    drive: Drive, tmp_path: Path
) -> None:
    resume_file = tmp_path / "resume"

    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.wait_until(lambda: driver.state.score_columns.by_name["block_influence"].values)
        os.kill(worker_pid(driver.runner), signal.SIGKILL)
        await driver.job_ended()
        assert "SIGKILL" in driver.text
        resume_file.touch()
        await driver.measure()
        await driver.job_ended()
        assert len(driver.session.scores) == 2
        assert "SIGKILL" not in driver.text

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--resume-file", str(resume_file)))


async def test_x_cancels_and_what_has_arrived_stays(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.wait_until(lambda: driver.state.score_columns.by_name["block_influence"].values)
        await driver.press("x")
        await driver.job_ended()
        assert "cancelled" in driver.text
        assert len(driver.state.score_columns.by_name["block_influence"].values) == 2
        assert driver.runner.client.alive

    await drive(scenario, worker=fake_worker("--pause-after", "4"))


async def test_a_second_x_ends_a_worker_that_does_not_listen(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.wait_until(lambda: driver.state.score_columns.by_name["block_influence"].values)
        pid = worker_pid(driver.runner)
        await driver.press("x")
        assert "x again ends the worker" in driver.text
        await driver.press("x")
        await driver.job_ended()
        assert not is_alive(pid)
        assert "cancelled" in driver.text

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--ignore-cancel"))


async def test_a_worker_that_does_not_start_is_told_with_its_command(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        assert "cannot be started" in driver.text

    await drive(scenario, worker="/no/such/program")


async def test_a_worker_that_ends_before_its_greeting_is_told(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        assert "ended with status 3" in driver.text

    await drive(scenario, worker=fake_worker("--no-hello"))


async def test_the_model_can_be_edited_while_it_is_measured(drive: Drive, tmp_path: Path) -> None:
    """The scores that then arrive are of the model as it was, and say so."""
    resume_file = tmp_path / "resume"

    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.wait_until(lambda: driver.state.score_columns.by_name["block_influence"].values)
        await driver.press("G", "d", "enter")
        resume_file.touch()
        await driver.job_ended()
        assert driver.session.position == 1
        assert all(map(driver.state.is_stale, driver.state.visible_columns))
        await driver.press("u")
        assert not any(map(driver.state.is_stale, driver.state.visible_columns))

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--resume-file", str(resume_file)))


async def test_quitting_while_it_measures_leaves_no_process(session: Session) -> None:
    app = SurgeonApp(session, fake_worker("--pause-after", "4", "--ignore-cancel"))
    async with app.run_test(size=(80, 24)) as pilot:
        driver = AppDriver(app, pilot)
        await driver.measure()
        await driver.wait_until(lambda: driver.state.score_columns.by_name["block_influence"].values)
        pid = worker_pid(app.runner)
        await driver.press("q")
    assert not is_alive(pid)


async def test_a_base_that_does_not_fit_is_told_once_the_worker_runs(drive: Drive) -> None:
    """Quietly asked for: nothing is said of a base that is in order."""

    async def scenario(driver: AppDriver) -> None:
        assert "does not fit" not in driver.text
        await driver.measure()
        await driver.wait_until(lambda: driver.state.base_fault)
        await driver.job_ended()
        assert "! cannot be loaded" in driver.text.splitlines()[0]
        assert "lm_head.weight" in driver.state.base_fault
        assert len(driver.session.scores) == 2

    await drive(scenario, worker=fake_worker("--missing", "lm_head.weight"))


async def test_a_base_that_fits_is_not_spoken_of(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        await driver.wait_until(lambda: any("the base fits" in line for line in driver.runner.log))
        assert "fit" not in driver.text.splitlines()[0]
        assert "measured" in driver.text

    await drive(scenario, worker=fake_worker())


async def test_a_base_is_judged_as_soon_as_it_is_open(tiny: Path) -> None:
    """Without any job; what was judged before is known when the screen is built."""
    app = SurgeonApp(Session.open(str(tiny)), fake_worker("--missing", "lm_head.weight"), judge_base=True)
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            driver = AppDriver(app, pilot)
            await driver.wait_until(lambda: driver.state.base_fault)
            assert "! cannot be loaded" in driver.text.splitlines()[0]
            assert not driver.session.scores
    finally:
        app.session.close()
