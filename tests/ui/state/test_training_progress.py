"""The loss curve and what is kept of the progress events."""

from __future__ import annotations

import math

from surgeon.core.events import Progress
from surgeon.ui.state.training_progress import TrainingProgress, sparkline


def test_a_curve_falls_as_the_losses_do() -> None:
    """One cell for each value, or for the mean of a share of them; nothing breaks it."""
    assert sparkline([], 8) == ""
    assert sparkline([3.0], 8) == "▁"
    assert sparkline([2.0, 1.0], 8) == "█▁"
    assert sparkline(list(range(64, 0, -1)), 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([5.0, math.nan, math.inf, 1.0], 8) == "█▁"


def test_training_progress_keeps_one_loss_for_each_step() -> None:
    """The last step is told of twice: once more with the held-out loss that follows it."""
    progress = TrainingProgress()
    for done, loss in ((1, 3.0), (2, 2.0), (2, 2.0)):
        figures = {"loss": loss, "held_out_loss": 2.5, "held_out_before_loss": 4.0}
        progress.update(Progress(done=done, total=2, unit="steps", what="training", figures={**figures}))
    assert progress.losses == [3.0, 2.0]
    assert progress.metrics == ["loss 2.00", "held-out loss 4.00→2.50"]
