"""One arm of an experiment: a shipped recipe with some values changed, run in this process."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgeon.core.plan.learned_results import result_report
from surgeon.core.recipe.learning_step import LEARNED
from surgeon.core.recipe.problems import built_in
from surgeon.core.recipe.recipe import recipe_from_builtins, recipe_to_builtins
from surgeon.core.recipe.yaml_document import read_document
from tests.jobs import perform

RECIPES = Path(__file__).parents[2] / "recipes"

Plain = dict[str, Any]
Change = Callable[[Plain, int], None]
"""Changes a recipe as plain data; told the seed."""


@dataclass(frozen=True)
class Arm:
    """A named variant of a recipe."""

    name: str
    recipe: str
    changes: tuple[Change, ...] = ()
    cut: Mapping[str, Any] = field(default_factory=dict)


def plain_recipe(arm: Arm, seed: int) -> Plain:
    """Return an arm's recipe as plain data."""
    plain: Plain = copy.deepcopy(built_in(read_document(RECIPES / arm.recipe)))
    plain["seed"] = seed
    for change in arm.changes:
        change(plain, seed)
    return plain


def steps_named(plain: Plain, name: str) -> list[Plain]:
    """Return the fields of every step of that operation, to be changed in place."""
    return [step[name] for step in plain["steps"] if name in step]


def run_arm(arm: Arm, seed: int, say: Callable[[str], None] = print) -> Plain:
    """Run one arm; return its evaluations in order, and what its last training found: losses, seconds."""
    recipe = recipe_from_builtins(plain_recipe(arm, seed), arm.name)

    def emit(kind: str, body: Plain) -> None:
        if kind == "log":
            say(f"    {body['text']}")

    with tempfile.TemporaryDirectory() as place:
        args = {"recipe": recipe_to_builtins(recipe), "root": str(RECIPES), "out": f"{place}/out", "verify": False}
        result = perform("run", args, emit, lambda: False)
    resolved = [step["resolved"] for step in result["recipe"]["steps"] if "resolved" in step]
    addresses = [str(one[LEARNED][0]) for one in resolved if LEARNED in one]
    found: Plain = {"evaluations": result["evaluations"], "resolved": resolved}
    if addresses:
        report = result_report(addresses[-1])
        found |= {"losses": report.get("losses", []), "seconds": report.get("seconds")}
    return found
