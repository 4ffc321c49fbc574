"""Steps that are trained: the worker trains them before they are applied."""

from __future__ import annotations

from surgeon.core.jobs import AnyResult, EvaluateResult, LearnResult, RunResult
from surgeon.core.recipe.recipe import Step
from surgeon.errors import SurgeonError
from surgeon.ui.screens.actions.job_actions import JobActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.job_runner import JobDefaults
from surgeon.ui.state.step_text import step_title
from surgeon.ui.state.training_progress import training_report_text

_STATE_KEPT = "its state is kept: the same step goes on from there"


class TrainingActions:
    """Trains a step that is about to be applied, or the applied steps that lack their results."""

    def __init__(self, layout: MainLayout, jobs: JobActions, defaults: JobDefaults) -> None:
        self._layout, self._state, self._jobs, self._defaults = layout, layout.state, jobs, defaults

    def train_step(self, step: Step) -> None:
        """Train a step; it is applied with its result."""
        self._start(_job_title(step), step)

    def train_applied_steps(self) -> None:
        """Train the applied steps that have no result yet."""
        self._start("learn what is pending", None)

    def _start(self, title: str, step: Step | None) -> None:
        device = {"device": self._defaults.device} if self._defaults.device else {}
        job = self._state.session.learn_job(step, **device)
        self._state.set_notice(
            f"{title}: its result becomes a step once it is there\nx stops it, and it can go on later"
        )
        self._jobs.start(job, title, self._trained, kept=_STATE_KEPT)
        self._layout.reload()

    def _trained(self, result: AnyResult) -> None:
        assert isinstance(result, LearnResult)
        if not self.take_results(result):
            return
        reports = list(result.reports.values())
        step = self._state.session.steps[self._state.session.position - 1]
        report = training_report_text(reports[-1])
        self._state.set_notice(f"applied: {step_title(step)} · u undoes\n{report}", "success")

    def take_results(self, result: LearnResult | EvaluateResult | RunResult) -> bool:
        """Store the results that a job computed; False where the steps have changed in the meantime."""
        try:
            self._state.session.take_learned(result)
        except SurgeonError as error:
            self._state.set_notice(str(error), "error")
            return False
        self._state.reload()
        return True


def _job_title(step: Step) -> str:
    objective = getattr(step.operation, "objective", None)
    name = step.operation.name.replace("_", "-")
    return f"{name} {objective.objective.name}" if objective is not None else name
