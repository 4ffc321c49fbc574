from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.cli.commands.schema import recipe_schema
from surgeon.core.recipe.objective import objectives
from surgeon.core.recipe.recipe import load_recipe, recipe_from_builtins, recipe_to_builtins
from surgeon.errors import RecipeError
from tests.cli.conftest import Run
from tests.cli.test_schema import recipe_with, valid
from tests.cli.tiny_checkpoints import tiny_llama

FORMS: list[Any] = [
    "dpo", {"dpo": None}, {"dpo": {"beta": 0.2, "keep_rejected": 0.1}}, {"npo": {"threshold": None}},
    {"distill": {"temperature": 2}}, {"lm": {}},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operation", ["train", "mask_weights"])
def test_the_schema_takes_every_form_of_an_objective(operation: str, form: Any) -> None:
    """As reading does."""
    plain = recipe_with(steps=[{operation: {"objective": form}, "resolved": {"learned": ["0123456789abcdef"]}}])
    recipe = recipe_from_builtins(plain)
    assert valid(plain, recipe_schema())
    assert recipe_from_builtins(recipe_to_builtins(recipe)) == recipe


@pytest.mark.parametrize(
    "form", ["dop", {"dpo": {"bete": 0.2}}, {"dpo": {"beta": 0}}, {"dpo": {}, "npo": {}}, 3, [], None]
)
def test_the_schema_refuses_what_is_no_objective(form: Any) -> None:
    """As reading does."""
    plain = recipe_with(steps=[{"train": {"objective": form}}])
    assert not valid(plain, recipe_schema())
    with pytest.raises(RecipeError):
        recipe_from_builtins(plain)


def test_the_schema_refuses_an_address_where_nothing_is_learned() -> None:
    """As reading does."""
    plain = recipe_with(steps=[{"prune": {"layers": 1}, "resolved": {"learned": ["0123456789abcdef"]}}])
    assert not valid(plain, recipe_schema())
    with pytest.raises(RecipeError):
        recipe_from_builtins(plain)


def test_every_objective_is_listed_with_its_settings(run: Run) -> None:
    """By name, with what its rows must be."""
    rows = json.loads(run("list", "objectives", "--json").stdout)
    assert [row["name"] for row in rows] == sorted(objectives())
    (dpo,) = (row for row in rows if row["name"] == "dpo")
    assert dpo["rows"] == "pairs"
    assert dpo["settings"] == "beta=0.1, keep_rejected=null"


def test_an_objective_is_an_option(run: Run, tmp_path: Path) -> None:
    """By name alone, or with settings; the recipe says the same."""
    assert "--objective OBJECTIVE" in run("train", "--help").stdout
    assert "--objective OBJECTIVE" in run("mask-weights", "--help").stdout
    model, recipe = str(tiny_llama(tmp_path / "model")), tmp_path / "recipe.yaml"
    run("train", model, "--objective", "dpo: {beta: 0.2}", "--steps", "3", "--save-recipe", str(recipe))
    (step,) = recipe_to_builtins(load_recipe(recipe))["steps"]
    assert step == {"train": {"objective": {"dpo": {"beta": 0.2}}, "steps": 3}}


def test_data_of_a_learning_step_is_found_from_where_its_recipe_lies(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share to hold out stays a share."""
    model = str(tiny_llama(tmp_path / "model"))
    (tmp_path / "pairs.jsonl").write_text("")
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ("--objective", "dpo", "--data", "pairs.jsonl", "--held-out", "5%")
    run("train", model, *options, "--save-recipe", "kept/recipe.yaml")
    (step,) = recipe_to_builtins(load_recipe(Path("kept/recipe.yaml")))["steps"]
    assert (tmp_path / "kept" / step["train"]["data"]).resolve() == (tmp_path / "pairs.jsonl").resolve()
    assert step["train"]["held_out"] == "5%"


def test_a_dry_run_of_a_learning_step_trains_nothing(run: Run, tmp_path: Path) -> None:
    """And its mask changes no field of the config."""
    model = str(tiny_llama(tmp_path / "model"))
    done = run("mask-weights", model, "--keep", "0.1", "--order", "random", "--dry-run")
    assert done.exit_code == 0, done.stderr
