"""Every shipped recipe, end to end, cut down to two steps of each training: on a small model, and on the demo model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.core.plan.learned_results import result_report
from surgeon.core.recipe.learning_step import LEARNED
from surgeon.core.recipe.problems import built_in
from surgeon.core.recipe.recipe import load_recipe, recipe_from_builtins, recipe_to_builtins
from surgeon.core.recipe.yaml_document import read_document
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.jobs import perform

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
EXPERTS = ("reap.yaml",)
"""Recipes for mixtures of experts, which the demo model is none of."""
_LEARNING = ("train", "mask_weights", "learn_masks")
_SCORED = {"sequences": 1, "length": 32}
_STEPS = 2
"""The first one warms up: its learning rate is zero."""


def _cut(name: str, base: Path, length: int) -> dict[str, Any]:
    """Return a recipe for another base, with two optimiser steps of each training, on rows of at most `length`."""
    plain: dict[str, Any] = built_in(read_document(RECIPES / name))
    plain["base"] = {"model": str(base)}
    for step in plain["steps"]:
        for operation, fields in step.items():
            if operation in _LEARNING:
                fields |= {"steps": _STEPS, "batch_size": 1, "max_length": length}
            if operation == "evaluate":
                fields |= {"rows": 2, "max_length": length}
            for choice in (fields or {}).values():
                _cut_score(choice, length)
    return plain


def _cut_score(choice: Any, length: int) -> None:
    by = choice.get("by") if isinstance(choice, dict) else None
    if isinstance(by, dict) and "ila" in by:
        by["ila"] |= {"steps": _STEPS, "mask_steps": _STEPS, "batch_size": 1, "max_length": length}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of as many layers as the demo has, and a tokenizer of characters."""
    place = tmp_path_factory.mktemp("recipes") / "small"
    wide = {"num_hidden_layers": 30, "intermediate_size": 256, "max_position_embeddings": 1024}
    save_tiny("llama", place, torch.bfloat16, **wide)
    write_tokenizer(place)
    return place


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture of experts."""
    place = tmp_path_factory.mktemp("recipes") / "experts"
    save_tiny("mixtral", place, torch.bfloat16, max_position_embeddings=1024)
    write_tokenizer(place)
    return place


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_runs_to_a_verified_export(name: str, small: Path, experts: Path, tmp_path: Path) -> None:
    """Every training runs, every evaluation has a finite figure, its data are there, and the export is proved."""
    _require_it_runs(_cut(name, experts if name in EXPERTS else small, 320), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES} - {*EXPERTS}))
def test_a_shipped_recipe_runs_on_the_demo_model(name: str, demo_model: Path, tmp_path: Path) -> None:
    """The same on real weights with the model's own tokenizer and chat template."""
    _require_it_runs(_cut(name, demo_model, 64), tmp_path / "out")


def _require_it_runs(plain: dict[str, Any], out: Path) -> None:
    recipe = recipe_from_builtins(plain, "cut")
    args = {"recipe": recipe_to_builtins(recipe), "root": str(RECIPES), "out": str(out), **_SCORED}
    result = perform("run", args, lambda _kind, _body: None, lambda: False)

    assert all((RECIPES / source).is_file() for source in recipe.data.values())
    assert all(check["passed"] for check in result["proof"].values())
    steps = result["recipe"]["steps"]
    for step in steps:
        if set(step) & set(_LEARNING):
            assert len(result_report(str(step["resolved"][LEARNED][0]))["losses"]) == _STEPS
    assert len(result["evaluations"]) == sum("evaluate" in step for step in steps)
    figures = [value["value"] for one in result["evaluations"] for value in one["figures"].values()]
    assert all(map(math.isfinite, figures))
    assert len(load_recipe(out / "recipe.yaml").steps) == len(steps)
