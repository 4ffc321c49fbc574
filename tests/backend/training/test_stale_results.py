"""Results of training in a recipe that was changed since: made anew by a run, and never taken for what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.cli.dry_run import fold_recipe
from surgeon.core.recipe.recipe import dump_recipe, load_recipe, recipe_from_builtins, recipe_to_builtins
from surgeon.errors import RecipeError
from surgeon.session import Session
from tests.backend.training_recipes import Step, pupil, recipe, training
from tests.jobs import perform

STEPS: tuple[Step, ...] = (
    {"masked_lora": {"layers": "all"}},
    training(steps=2),
    {"merge_adapters": {}},
    {"prune": {"layers": "lowest 1 by weight_norm"}},
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return pupil(tmp_path)


def run(model: Path, plain: dict[str, Any], out: str, said: list[str] | None = None) -> dict[str, Any]:
    def emit(kind: str, body: dict[str, Any]) -> None:
        if said is not None and body.get("level") == "warning":
            said.append(body["text"])

    place = model.parent
    args = {"recipe": plain, "root": str(place), "out": str(place / out), "verify": False, "device": "cpu"}
    done: dict[str, Any] = perform("run", args, emit)["recipe"]
    return done


def test_every_result_is_signed_and_holds(model: Path) -> None:
    done = run(model, recipe(model, STEPS), "out")
    assert all(set(step) >= {"resolved", "resolved_for"} for step in done["steps"][1:])
    folded = fold_recipe(load_recipe(model.parent / "out" / "recipe.yaml"), model.parent / "out" / "recipe.yaml")
    assert [report.stale for report in folded.reports] == [""] * 4
    assert folded.dry_run.exact
    said: list[str] = []
    again = run(model, done, "again", said)
    assert (again, said) == (done, [])


@pytest.mark.parametrize(
    ("number", "fields", "stale"),
    [
        (1, {"steps": 3}, [1, 2, 3]),
        (1, {"learning_rate": 2e-2}, [1, 2, 3]),
        (0, {"rank": 4}, [1, 2, 3]),
        (1, {"save_steps": 7}, []),
    ],
)
def test_a_change_makes_the_results_behind_it_stale(
    model: Path, number: int, fields: dict[str, Any], stale: list[int]
) -> None:
    """A run comes to what a fresh one comes to; a dry run says so; nothing is verified or shown as if it were it."""
    done = run(model, recipe(model, STEPS), "out")
    name = ("masked_lora", "train")[number]
    done["steps"][number][name] |= fields
    path = model.parent / "out" / "recipe.yaml"
    changed = recipe_from_builtins({**done, "base": {"model": str(model)}})
    path.write_text(dump_recipe(changed))
    reports = fold_recipe(changed, path).reports
    assert [report.number for report in reports if report.stale] == stale
    assert (reports[1].learn is not None) == bool(stale)
    if not stale:
        Session.open(str(model), path).close()
        return
    with pytest.raises(RecipeError, match=r"its result .* was made for other words"):
        perform("verify", {"directory": str(path.parent)})
    with pytest.raises(RecipeError, match=r"steps\[3\]\.prune asks for layers lowest 1 by weight_norm, but"):
        Session.open(str(model), path)
    said: list[str] = []
    again = run(model, done, "again", said)
    unresolved = {**done, "steps": [{key: one for key, one in step.items() if "resolved" not in key}
                                    for step in done["steps"]]}  # fmt: skip
    assert again == run(model, unresolved, "fresh")
    assert [text.partition(":")[0] for text in said[:2]] == ["steps[1].train", "steps[2].merge_adapters"]


def test_a_session_leaves_stale_results_out_and_learns_them_again(model: Path) -> None:
    done = run(model, recipe(model, STEPS[:3]), "out")
    done["steps"][1]["train"]["steps"] = 3
    path = model.parent / "r.yaml"
    path.write_text(dump_recipe(recipe_from_builtins(done)))
    session = Session.open(str(model), path)
    assert session.plan.pending
    assert [step.resolved for step in session.steps] == [None] * 3
    assert session.notes == ["changed since they were made: results of steps 2, 3; they are left out"]
    assert not session.unsaved
    session.close()


def test_undone_steps_that_were_measured_behind_another_result_are_not_redone(model: Path) -> None:
    """Data changed on disk: training again comes to other weights, and what was measured behind them is stale."""
    from surgeon.core.jobs import LearnResult

    done = run(model, recipe(model, (training(steps=2), STEPS[3])), "out")
    path = model.parent / "r.yaml"
    path.write_text(dump_recipe(recipe_from_builtins(done)))
    session = Session.open(str(model), path)
    session.undo()
    other = {**done["steps"][0], "resolved": {"learned": ["0" * 16]}}
    session.take_learned(LearnResult(recipe={**done, "steps": [other]}, reports={}))
    assert len(session.steps) == 1
    assert not session.redo()
    session.close()
    assert len(recipe_to_builtins(load_recipe(path))["steps"]) == 2
