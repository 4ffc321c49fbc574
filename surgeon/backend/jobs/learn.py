"""The `learn` job: carries out the learning steps of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.backend.base import open_base
from surgeon.backend.replay import replay
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.recipe.learning_step import LEARNED
from surgeon.core.recipe.recipe import recipe_from_builtins, recipe_to_builtins


def learn_job(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    """Perform a `learn` job: carry out the learning steps of a recipe; see `Session.learn_job` for its arguments."""
    from surgeon.core.plan.learned_results import result_report

    recipe = recipe_from_builtins(args["recipe"])
    _, recipe = replay(recipe, open_base(recipe, "recipe"), args, emit, cancelled)
    addresses = [step.resolved[LEARNED][0] for step in recipe.steps if step.resolved and LEARNED in step.resolved]
    reports = {str(address): dict(result_report(str(address))) for address in addresses}
    return {"recipe": recipe_to_builtins(recipe), "reports": reports}
