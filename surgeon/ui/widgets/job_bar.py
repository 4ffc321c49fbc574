"""The bar of the worker: the running job, or the worker's crash, or that it is idle."""

from __future__ import annotations

from rich.text import Text

from surgeon.ui.state.formatting import bar_text, bytes_text, count_text, seconds_text
from surgeon.ui.state.job_runner import JobRunner, RunningJob
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.state.training_progress import TrainingProgress, sparkline
from surgeon.ui.widgets.base_bar import StatusBar, join_parts

_PROGRESS_CELLS = 20
_CURVE_CELLS = 40


class JobBar(StatusBar):
    """One line; two while a step is trained."""

    def __init__(self, state: ScreenState, runner: JobRunner, *, id: str) -> None:
        super().__init__(state, id=id)
        self.runner = runner

    def reload(self) -> None:
        """Repaint, with the height that the running job needs."""
        running = self.runner.running
        self.set_class(running is not None and running.training is not None, "-training")
        self.refresh()

    def render(self) -> Text:
        """Render the job, if there is one."""
        running = self.runner.running
        if running is None:
            return self._crash(self.runner.crash) if self.runner.crash is not None else self._idle()
        if running.training is not None:
            return self._training(running, running.training)
        return self._job(running)

    def _crash(self, crash: str) -> Text:
        text = Text(
            f" {crash} · S measures again · r restarts it ",
            self.theme_styles.banner,
            no_wrap=True,
            overflow="ellipsis",
        )
        text.pad_right(max(0, self.size.width - text.cell_len))
        return text

    def _idle(self) -> Text:
        styles = self.theme_styles
        if self.runner.client.alive:
            memory = f" · {bytes_text(self.runner.resident_bytes)}" if self.runner.resident_bytes else ""
            return Text(f" worker ready{memory}", styles.faint)
        return Text(" worker not started: it starts with the first measurement", styles.faint)

    def _job(self, running: RunningJob) -> Text:
        styles = self.theme_styles
        text = Text(" ", no_wrap=True, overflow="ellipsis")
        text.append(running.title, styles.title)
        if running.total:
            done, total = (
                bytes_text(n) if running.unit == "bytes" else f"{n:g}" for n in (running.done, running.total)
            )
            text.append(f" {done}/{total} ", styles.foreground)
            text.append(bar_text(running.done / running.total, _PROGRESS_CELLS), styles.progress_bar)
        else:
            text.append(f" {running.what or 'starting the worker'} {seconds_text(running.elapsed)}", styles.dim)
        text.append(" · " if running.cancelling else " · x cancels", styles.dim)
        left = None if running.cancelling else running.seconds_left
        text.append(f" · {seconds_text(left)} left of {running.what}" if left is not None else "", styles.dim)
        if running.cancelling:
            text.append("cancelling, x again ends the worker", styles.warning)
        if running.total and running.what and left is None:
            text.append(f" · {running.what}", styles.faint)
        return text

    def _training(self, running: RunningJob, training: TrainingProgress) -> Text:
        """Render the steps done, the speed and the time left; below them the loss curve and the metrics."""
        styles, done, total = self.theme_styles, training.steps_done, training.steps_total
        speed, left = count_text(training.tokens_per_second), seconds_text(training.seconds_left)
        text = Text(" ", no_wrap=True, overflow="ellipsis")
        text.append(running.title, styles.title)
        text.append(f" {done}/{total} ", styles.foreground)
        text.append(bar_text(done / total, _PROGRESS_CELLS), styles.progress_bar)
        text.append(f" {speed} tokens/s · {left} left", styles.dim)
        if running.cancelling:
            text.append(" · stopping, x again ends the worker", styles.warning)
        else:
            text.append(" · x stops", styles.dim)
        text.append(f" · {running.what}" if running.what != "training" else "", styles.faint)
        text.append("\n ")
        text.append(sparkline(training.losses, min(_CURVE_CELLS, self.size.width // 4)), styles.accent)
        text.append(" ")
        return text.append_text(join_parts(training.metrics, styles))
