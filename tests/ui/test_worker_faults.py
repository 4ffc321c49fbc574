"""What a worker can do wrong, with a real process on a real pipe."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from tests.ui.conftest import Drive, Operator, fake_worker


def lives(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_worker_that_crashes_leaves_its_scores_the_recipe_and_a_way_to_go_on(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("d", "enter")
        await operator.measure()
        await operator.measured()
        assert "SIGKILL" in operator.text
        assert "S measures again" in operator.text
        assert "what has arrived stays" in operator.text
        assert len(operator.room.board.columns["block_influence"].values) == 2
        assert "···" not in operator.text
        assert operator.session.position == 1
        await operator.press("r")
        await operator.until(lambda: "the worker is ready" in operator.text)
        assert "SIGKILL" not in operator.text

    await drive(scenario, worker=fake_worker("--crash-after", "4"))


async def test_a_worker_killed_from_outside_is_told_and_the_next_measurement_works(
    drive: Drive, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.until(lambda: operator.room.board.columns["block_influence"].values)
        os.kill(int(operator.desk.client.hello["pid"]), signal.SIGKILL)
        await operator.measured()
        assert "SIGKILL" in operator.text
        gate.touch()
        await operator.measure()
        await operator.measured()
        assert len(operator.session.scores) == 2
        assert "SIGKILL" not in operator.text

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--gate", str(gate)))


async def test_x_cancels_and_what_has_arrived_stays(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.until(lambda: operator.room.board.columns["block_influence"].values)
        await operator.press("x")
        await operator.measured()
        assert "cancelled" in operator.text
        assert len(operator.room.board.columns["block_influence"].values) == 2
        assert operator.desk.client.alive

    await drive(scenario, worker=fake_worker("--pause-after", "4"))


async def test_a_second_x_ends_a_worker_that_does_not_listen(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.until(lambda: operator.room.board.columns["block_influence"].values)
        pid = int(operator.desk.client.hello["pid"])
        await operator.press("x")
        assert "x again ends the worker" in operator.text
        await operator.press("x")
        await operator.measured()
        assert not lives(pid)
        assert "cancelled" in operator.text

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--deaf"))


async def test_a_worker_that_does_not_start_is_told_with_its_command(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.measured()
        assert "cannot be started" in operator.text

    await drive(scenario, worker="/no/such/program")


async def test_a_worker_that_ends_before_its_greeting_is_told(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.measured()
        assert "ended with status 3" in operator.text

    await drive(scenario, worker=fake_worker("--no-hello"))


async def test_the_model_can_be_edited_while_it_is_measured(drive: Drive, tmp_path: Path) -> None:
    """The scores that then arrive are of the model as it was, and say so."""
    gate = tmp_path / "gate"

    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.until(lambda: operator.room.board.columns["block_influence"].values)
        await operator.press("G", "d", "enter")
        gate.touch()
        await operator.measured()
        assert operator.session.position == 1
        assert all(map(operator.room.is_stale, operator.room.columns))
        await operator.press("u")
        assert not any(map(operator.room.is_stale, operator.room.columns))

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--gate", str(gate)))


async def test_quitting_while_it_measures_leaves_no_process(session: Session) -> None:
    app = SurgeonApp(session, fake_worker("--pause-after", "4", "--deaf"))
    async with app.run_test(size=(80, 24)) as pilot:
        operator = Operator(app, pilot)
        await operator.measure()
        await operator.until(lambda: operator.room.board.columns["block_influence"].values)
        pid = int(app.desk.client.hello["pid"])
        await operator.press("q")
    assert not lives(pid)
