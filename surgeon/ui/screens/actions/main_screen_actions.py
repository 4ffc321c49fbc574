"""All actions of the main screen that open a dialog or use the worker."""

from __future__ import annotations

from surgeon.ui.screens.actions.evaluation_actions import EvaluationActions
from surgeon.ui.screens.actions.file_actions import FileActions
from surgeon.ui.screens.actions.job_actions import JobActions
from surgeon.ui.screens.actions.score_actions import ScoreActions
from surgeon.ui.screens.actions.step_actions import StepActions
from surgeon.ui.screens.actions.training_actions import TrainingActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.job_runner import JobDefaults


class MainScreenActions:
    """One object per kind of action."""

    def __init__(self, layout: MainLayout, defaults: JobDefaults) -> None:
        self.jobs = JobActions(layout)
        self.scores = ScoreActions(layout, self.jobs, defaults)
        self.training = TrainingActions(layout, self.jobs, defaults)
        self.evaluation = EvaluationActions(layout, self.jobs, self.training, defaults)
        self.steps = StepActions(layout, self.training, self.evaluation)
        self.files = FileActions(layout, self.jobs, self.training, defaults)
