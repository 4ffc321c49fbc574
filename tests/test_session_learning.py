"""Learning steps in a session: carried out by a worker, then steps like any other. Every optimiser step is counted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.core.job_results import LearnResult
from surgeon.core.jobs import AnyJob
from surgeon.core.recipe.recipe import load_recipe, recipe_to_builtins
from surgeon.errors import RecipeError
from surgeon.session import Session
from tests.backend.training_recipes import pupil, training
from tests.backend.worker_process import Worker
from tests.jobs import job_of, plain_job, result_of

COUNTING = """
import torch
from surgeon.backend.worker import main

real = torch.optim.AdamW.step
def step(*args, **kwargs):
    with open({path!r}, "ab") as file:
        file.write(b".")
    return real(*args, **kwargs)
torch.optim.AdamW.step = step
main()
"""


def learned(body: dict[str, Any]) -> LearnResult:
    """Return what a learn job came to."""
    result = result_of("learn", body)
    assert isinstance(result, LearnResult)
    return result


class Learner:
    """A session and the worker that learns for it; both keep results in one cache."""

    def __init__(self, model: Path, place: Path, worker: Worker, counted: Path) -> None:
        self.model, self.place, self.worker, self.counted = model, place, worker, counted
        self.session = Session.open(str(model), place / "r.yaml")

    @property
    def steps(self) -> int:
        """How many optimiser steps the worker has made."""
        return len(self.counted.read_bytes()) if self.counted.exists() else 0

    def is_pending(self) -> bool:
        return self.session.plan.pending

    def reopen(self) -> None:
        """Crash, and open the recipe again."""
        self.session.close(keep_journal=True)
        self.session = Session.open(str(self.model), self.place / "r.yaml")

    def job(self, job: AnyJob) -> dict[str, Any]:
        number = len(self.worker.events) + 1000
        name, args = plain_job(job)
        self.worker.send(name, number, **args)
        end = self.worker.end_of(number)
        assert end["event"] == "result", end
        found: dict[str, Any] = end["body"]
        return found

    def learn(self, **fields: Any) -> None:
        """Draft a training step, have it carried out, apply it."""
        step = self.session.step("train", training(**fields)["train"])
        assert self.session.preview(step).plan.pending
        assert self.session.take_learned(learned(self.job(self.session.learn_job(step, device="cpu")))) is not None
        assert not self.session.plan.pending


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, a text, the worker's cache and its count of steps."""
    place = tmp_path_factory.mktemp("home")
    pupil(place)
    return place


@pytest.fixture(scope="module")
def worker(home: Path) -> Iterator[Worker]:
    """One worker for all tests: each costs the import of torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGEON_CACHE", str(home / "cache"))
        one = Worker(COUNTING.format(path=str(home / "steps")), home=home)
    yield one
    one.stop()


@pytest.fixture
def learner(home: Path, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Learner]:
    shutil.rmtree(home / "cache" / "learned", ignore_errors=True)
    (home / "steps").unlink(missing_ok=True)
    monkeypatch.setenv("SURGEON_CACHE", str(home / "cache"))
    (tmp_path / "text.jsonl").write_bytes((home / "text.jsonl").read_bytes())
    one = Learner(home / "model", tmp_path, worker, home / "steps")
    yield one
    one.session.close()


def test_undo_and_redo_train_nothing_and_neither_does_a_replay(learner: Learner, tmp_path: Path) -> None:
    """Two training steps with a prune between: made once, whatever is undone, redone, saved, reopened and exported."""
    session = learner.session
    learner.learn(steps=3)
    session.apply(session.step("prune", {"layers": 1}))
    learner.learn(steps=2)
    assert learner.steps == 5
    trained = session.draft
    while session.undo():
        pass
    assert not learner.is_pending()
    while session.redo():
        pass
    assert session.draft == trained
    assert not learner.is_pending()
    session.save()
    exported = learner.job(session.run_job(tmp_path / "out", device="cpu"))
    assert all(check["passed"] for check in exported["proof"].values())
    again = load_recipe(session.save())
    assert again.steps == session.steps
    unresolved = recipe_to_builtins(again)
    for step in unresolved["steps"]:
        step.pop("resolved", None)
    out = {"recipe": unresolved, "root": str(tmp_path), "out": str(tmp_path / "again"), "device": "cpu"}
    assert learner.job(job_of("run", out))["recipe"]["steps"] == recipe_to_builtins(session.applied_recipe())["steps"]
    assert learner.steps == 5
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]


def test_a_changed_line_trains_only_what_follows_it(learner: Learner) -> None:
    """The first step's result is kept when the second one's settings, or the text it reads, change."""
    session = learner.session
    learner.learn(steps=3)
    learner.learn(steps=2)
    session.undo()
    learner.learn(steps=2, learning_rate=2e-2)
    assert learner.steps == 7
    session.undo()
    session.undo()
    (learner.place / "text.jsonl").write_text('{"text": "something else entirely"}\n' * 40)
    learner.learn(steps=3)
    assert learner.steps == 10


def test_a_step_learned_for_other_steps_is_not_applied(learner: Learner) -> None:
    """Its result stays: where its own steps are back, it is there without training."""
    session = learner.session
    step = session.step("train", training(steps=2)["train"])
    result = learner.job(session.learn_job(step, device="cpu"))
    session.apply(session.step("prune", {"layers": 1}))
    with pytest.raises(RecipeError, match="have changed meanwhile"):
        session.take_learned(learned(result))
    assert session.position == 1
    session.undo()
    learner.learn(steps=2)
    assert learner.steps == 2


def test_a_recipe_with_steps_to_learn_opens_and_is_carried_out(learner: Learner, tmp_path: Path) -> None:
    """Its sizes are known at once, its weights after a learn job without a further step."""
    learner.session.close()
    (tmp_path / "r.yaml").write_text(
        f"version: 1\nbase: {{model: {learner.model}}}\nsteps:\n"
        "  - train: {objective: lm, data: text.jsonl, steps: 2, max_length: 24}\n  - prune: {layers: 0}\n"
    )
    session = learner.session = Session.open(str(learner.model), tmp_path / "r.yaml")
    assert learner.is_pending()
    assert len(session.draft.layers()) == 1
    result = learner.job(session.learn_job(device="cpu"))
    assert session.take_learned(learned(result)) is None
    assert not learner.is_pending()
    assert session.unsaved
    assert session.steps[0].resolved == {"learned": tuple(result["reports"])}
    assert load_recipe(session.save()).steps == session.steps


def test_a_journal_keeps_what_was_learned(learner: Learner) -> None:
    """After a crash the learned step is there again, and trains nothing."""
    learner.learn(steps=2)
    learner.session.apply(learner.session.step("freeze", {"layers": 0}))
    learner.reopen()
    assert learner.session.recovered is not None
    assert [step.operation.name for step in learner.session.steps] == ["train", "freeze"]
    assert not learner.is_pending()
    learner.learn(steps=2)
    assert learner.steps == 4


def test_a_result_that_is_gone_is_said_to_be_pending(learner: Learner) -> None:
    """Where the cache was emptied the plan says so, and a learn job brings the same address back."""
    learner.learn(steps=2)
    resolved = learner.session.steps[0].resolved
    shutil.rmtree(Path(os.environ["SURGEON_CACHE"]) / "learned")
    learner.session.undo()
    learner.session.redo()
    assert learner.is_pending()
    learner.session.take_learned(learned(learner.job(learner.session.learn_job(device="cpu"))))
    assert not learner.is_pending()
    assert learner.session.steps[0].resolved == resolved
    assert learner.steps == 4


def test_trained_adapters_are_pending_until_they_are_learned(learner: Learner) -> None:
    """Adapters have no tensors in the checkpoint; the plan still says that their values are missing."""
    learner.session.apply(learner.session.step("masked_lora", {"layers": "all", "rank": 2}))
    learner.learn(steps=2)
    assert learner.steps == 2
