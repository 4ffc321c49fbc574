"""Training on screen: what it says while it runs, stopping it, and the step that comes of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from surgeon.ui.state.training_progress import Lesson, curve
from tests.backend.training_recipes import pupil
from tests.ui.conftest import Operator

TRAIN = "train --objective lm --data text.jsonl --held-out 20% --eval-steps 20 --max-length 24 --learning-rate 1e-3"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SurgeonApp]:
    """The screen on a tiny model, with a real worker."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session = Session.open(str(pupil(tmp_path)), tmp_path / "r.yaml")
    yield SurgeonApp(session, device="cpu")
    session.close()


async def typed(operator: Operator, text: str) -> None:
    await operator.press("colon")
    await operator.type(text)
    await operator.press("enter")


async def test_a_long_training_is_watched_stopped_and_taken_up_again(app: SurgeonApp) -> None:
    """Steps, speed, time left, a curve, held-out loss; what was stopped goes on; undo and redo need no worker."""
    async with app.run_test(size=(80, 24)) as pilot:
        operator = Operator(app, pilot)
        await typed(operator, f"{TRAIN} --steps 600")
        await operator.until(lambda: (running := operator.desk.running) and running.lesson, 120)
        await operator.until(lambda: "→" in operator.line("held-out loss"))
        first, second = operator.line("tokens/s"), operator.line("held-out loss")
        assert "train lm" in first
        assert "/600" in first
        assert "left · x stops" in first
        assert second.split()[0][0] in "▁▂▃▄▅▆▇█"
        assert max(map(len, operator.text.splitlines())) <= 80
        await operator.press("x")
        await operator.measured()
        assert "its state is kept" in operator.text
        assert not operator.session.steps
        (state,) = Path(os.environ["SURGEON_CACHE"]).glob("learned/*.state/state.pt")
        await typed(operator, f"{TRAIN} --steps 600")
        await operator.measured()
        assert not state.exists()
        assert any("going on from step" in line for line in operator.desk.log)
        assert operator.session.position == 1
        assert "learned" in operator.text
        assert "in 600 steps" in operator.text
        await operator.press("u")
        assert operator.session.position == 0
        await operator.press("ctrl+r")
        assert not operator.session.plan.pending
        assert operator.desk.running is None


async def test_a_step_is_drafted_with_its_form_and_trained(app: SurgeonApp) -> None:
    """T opens the options, what is required first; the draft says what would be trained before anything is."""
    async with app.run_test(size=(120, 36)) as pilot:
        operator = Operator(app, pilot)
        await operator.press("T")
        assert app.focused is not None
        assert app.focused.id == "field-objective"
        await operator.until(lambda: "lm, sft, dpo" in operator.text)
        await operator.type("lm")
        app.screen.query_one("#field-steps").focus()
        await pilot.pause()
        await operator.type("3")
        await operator.press("enter")
        assert "trains 21.7k numbers" in operator.text
        assert "surgeon train" in operator.text
        await operator.press("enter")
        await operator.measured()
        assert operator.session.position == 1
        assert not operator.session.plan.pending
        assert operator.session.steps[0].operation.steps == 3  # type: ignore[attr-defined]


async def test_a_recipe_opens_with_what_it_has_to_learn(app: SurgeonApp, tmp_path: Path) -> None:
    """The key y carries it out; without anything pending it says so."""
    session = app.session
    session.apply(session.step("train", {"objective": "lm", "data": "text.jsonl", "steps": 2, "max_length": 24}))
    async with app.run_test(size=(80, 24)) as pilot:
        operator = Operator(app, pilot)
        states = [session.plan.pending]
        await operator.press("y")
        await operator.measured()
        states.append(session.plan.pending)
        assert states == [True, False]
        assert session.position == 1
        await operator.press("y")
        assert "every applied step is carried out" in operator.text


def test_a_curve_falls_as_the_losses_do() -> None:
    """One cell for each value, or for the mean of a share of them; nothing breaks it."""
    assert curve([], 8) == ""
    assert curve([3.0], 8) == "▁"
    assert curve([2.0, 1.0], 8) == "█▁"
    assert curve(list(range(64, 0, -1)), 8) == "█▇▆▅▄▃▂▁"
    assert curve([5.0, math.nan, math.inf, 1.0], 8) == "█▁"


def test_a_lesson_keeps_one_loss_for_each_step() -> None:
    """The last step is told of twice: once more with the held-out loss that follows it."""
    lesson = Lesson()
    for done, loss in ((1, 3.0), (2, 2.0), (2, 2.0)):
        lesson.take({"done": done, "total": 2, "loss": loss, "held_out_loss": 2.5, "held_out_before_loss": 4.0})
    assert lesson.losses == [3.0, 2.0]
    assert lesson.says == ["loss 2.00", "held-out loss 4.00→2.50"]
