"""Why something cannot be done now: each function returns the reason in words, or None where it can be done."""

from __future__ import annotations

from surgeon.core.recipe.operation import operations
from surgeon.ui.state.screen_state import ScreenState


def always(state: ScreenState) -> None:
    """Return no reason."""
    del state


def needs_pending_step(state: ScreenState) -> str | None:
    """Refuse while no step is pending."""
    if state.pending_step is None:
        names = ", ".join(f"{kind.key} {name.replace('_', '-')}" for name, kind in operations().items())
        return f"nothing is drafted: {names}"
    return None


def needs_valid_step(state: ScreenState) -> str | None:
    """Refuse while the pending step has an error."""
    if state.pending_step is not None and state.pending_step.error is not None:
        return str(state.pending_step.error)
    return None


def needs_applied_step(state: ScreenState) -> str | None:
    """Refuse to undo at the base."""
    return None if state.session.can_undo else "nothing to undo: this is the base"


def needs_undone_step(state: ScreenState) -> str | None:
    """Refuse to redo at the newest step."""
    return None if state.session.can_redo else "nothing to redo: this is the newest step"


def needs_idle_worker(state: ScreenState) -> str | None:
    """Refuse while a job runs."""
    return f"{state.job_title} is under way: x cancels it" if state.job_title else None


def needs_running_job(state: ScreenState) -> str | None:
    """Refuse while no job runs."""
    return None if state.job_title else "no job is under way"


def needs_untrained_step(state: ScreenState) -> str | None:
    """Refuse while every applied step has its result and its figures, or while a job runs."""
    lacking = state.session.plan.pending or state.unmeasured_steps
    return needs_idle_worker(state) if lacking else "every applied step is carried out"


def needs_scores(state: ScreenState) -> str | None:
    """Refuse while there are no score columns."""
    return None if state.visible_columns else "no scores yet: S measures them"


def needs_recipe(state: ScreenState) -> str | None:
    """Refuse to write an empty recipe."""
    return None if state.session.position or state.session.unsaved else "no steps yet: the recipe would be empty"


def needs_several_stacks(state: ScreenState) -> str | None:
    """Refuse where the model has a single stack."""
    return None if len(state.session.structure.stacks) > 1 else "this model has one stack of layers"
