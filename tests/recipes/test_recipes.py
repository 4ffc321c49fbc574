"""Every shipped recipe, end to end on the demo model, cut down to a step of each training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.backend.running import run_job
from surgeon.core.document import read_document
from surgeon.core.faults import built_in
from surgeon.core.learned import result_report
from surgeon.core.learning_step import LEARNED
from surgeon.core.recipe import load_recipe, recipe_from_builtins, recipe_to_builtins

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
_LEARNING = ("train", "mask_weights", "learn_masks")
_SCORED = {"sequences": 1, "length": 32}


def _cut(name: str) -> dict[str, Any]:
    """Return a recipe with one optimiser step of each training, on short rows."""
    plain: dict[str, Any] = built_in(read_document(RECIPES / name))
    for step in plain["steps"]:
        for operation, fields in step.items():
            if operation in _LEARNING:
                fields |= {"steps": 1, "batch_size": 1, "max_length": 64}
            if operation == "evaluate":
                fields |= {"rows": 2, "max_length": 64}
            for choice in (fields or {}).values():
                _cut_score(choice)
    return plain


def _cut_score(choice: Any) -> None:
    by = choice.get("by") if isinstance(choice, dict) else None
    if isinstance(by, dict) and "ila" in by:
        by["ila"] |= {"steps": 1, "mask_steps": 1, "batch_size": 1, "max_length": 64}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_runs_to_a_verified_export(name: str, demo_by_name: Path, tmp_path: Path) -> None:
    """Reloaded by plain transformers; every training ran, every evaluation has a finite figure, data are all there."""
    recipe = recipe_from_builtins(_cut(name), name)
    out = tmp_path / "out"
    said: list[str] = []
    args = {"recipe": recipe_to_builtins(recipe), "root": str(RECIPES), "out": str(out), **_SCORED}
    result = run_job(args, lambda kind, body: said.append(f"{kind} {body}"), lambda: False)

    assert all((RECIPES / source).is_file() for source in recipe.data.values())
    assert result["proof"]
    assert all(check["passed"] for check in result["proof"].values())
    steps = result["recipe"]["steps"]
    for step in steps:
        if set(step) & set(_LEARNING):
            assert len(result_report(str(step["resolved"][LEARNED][0]))["losses"]) == 1
    wanted = [step for step in steps if "evaluate" in step]
    assert len(result["evaluations"]) == len(wanted)
    figures = [value["value"] for one in result["evaluations"] for value in one["figures"].values()]
    assert all(isinstance(value, float) and abs(value) < 1e6 for value in figures)
    assert load_recipe(out / "recipe.yaml") == recipe_from_builtins(json.loads(json.dumps(result["recipe"])), "again")
