"""What a step would do, before it is done."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import apply_step
from surgeon.core.recipe.command_text import command_line
from surgeon.core.recipe.recipe import Step


@dataclass(frozen=True)
class Preview:
    """What a step would do, before it is done: headers and arithmetic only."""

    step: Step
    draft: Draft
    plan: Plan
    parameters_change: int
    bytes_change: int
    command: str


def preview_step(step: Step, number: int, draft: Draft, plan: Plan, model: str) -> Preview:
    """Say what a step, the one at `number` of its recipe, would do to a draft with that plan.

    Raises:
        RecipeError, ArchitectureError: the step does not fit.
    """
    after = apply_step(draft, step, number)
    planned = compile_plan(after)
    return Preview(
        step=step, draft=after, plan=planned,
        parameters_change=planned.parameters - plan.parameters,
        bytes_change=planned.nbytes - plan.nbytes,
        command=command_line(step, model, trust_remote_code=draft.structure.checkpoint.trust_remote_code),
    )  # fmt: skip
