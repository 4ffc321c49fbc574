"""What each tenth of the singular values is worth before fine-tuning and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgeon.backend.open_base import open_base
from surgeon.backend.replay import replay
from surgeon.backend.scoring.context import Settings
from surgeon.backend.scoring.singular_value_ablation import ablate
from surgeon.core.jobs import LearnJob
from surgeon.core.recipe.recipe import recipe_from_builtins
from tests.jobs import job_context
from tests.reproduce.arms import RECIPES, Arm, plain_recipe, steps_named

ROLES = ("attention.output", "mlp.up", "mlp.down")


def decile_curves(seeds: int) -> dict[str, Any]:
    """Return by state (`before`, `after`), role and tenth the rise of the loss in nats, and the energy that went."""
    del seeds  # one fine-tuning: the curve is about the weights, and its error is over sequences
    plain = plain_recipe(Arm("curve", "small_singular_values.yaml"), seed=0)
    plain["steps"] = [{"train": fields} for fields in steps_named(plain, "train")]
    settings = Settings(root=RECIPES, data=str(Path("data") / "prose_held_out.jsonl"), sequences=4, length=128)
    found: dict[str, Any] = {}
    for state, steps in (("before", []), ("after", plain["steps"])):
        recipe = recipe_from_builtins({**plain, "steps": steps})
        draft, _ = replay(
            recipe, open_base(recipe, "curve", RECIPES), LearnJob(recipe=plain), job_context(root=RECIPES)
        )
        measured = ablate(draft, ROLES, settings, job_context())
        found[state] = {
            role: [[row.rise, row.error, row.energy] for row in measured.rows if row.role == role] for role in ROLES
        }
    return found
