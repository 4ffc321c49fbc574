"""Measuring scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgeon.core.jobs import AnyResult, ScoreResult
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.ui.command_line import score_requests
from surgeon.ui.screens.actions.job_actions import JobActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.job_runner import JobDefaults

if TYPE_CHECKING:
    from surgeon.ui.screens.score_dialog import ScoreOptions


_MOST_NOTES = 3


class ScoreActions:
    """Asks for scores and measures them on the current draft."""

    def __init__(self, layout: MainLayout, jobs: JobActions, defaults: JobDefaults) -> None:
        self._layout, self._state, self._jobs, self._defaults = layout, layout.state, jobs, defaults
        self._last: ScoreOptions | None = None

    def choose(self) -> None:
        """Ask which scores to measure and on what data, then measure them."""
        from surgeon.ui.screens.score_dialog import ScoreDialog

        dialog = ScoreDialog(self._defaults.data, set(self._state.score_columns.by_name), self._last)
        self._layout.app.push_screen(dialog, self._chosen)

    def _chosen(self, options: ScoreOptions | None) -> None:
        if options is not None:
            self._last = options
            self.measure(options.names, options.data, **options.settings)

    def measure_from_line(self, options: Mapping[str, Any]) -> None:
        """Measure what a `:` line asks for; without `by` every score, without `data` on the default data."""
        rest = {name: value for name, value in options.items() if name not in ("by", "data")}
        self.measure(options.get("by", ("all",)), options.get("data", self._defaults.data), **rest)

    def measure(self, names: tuple[str, ...], data: str | None, **settings: Any) -> None:
        """Measure scores.

        Raises:
            UsageError: there is no score of such a name.
        """
        state, names = self._state, score_requests(names)
        settings = {"device": self._defaults.device, "dtype": self._defaults.dtype, **settings}
        settings = {name: value for name, value in settings.items() if value is not None}
        job = state.session.score_job(names, data, **settings)
        columns = tuple(name.partition("(")[0] for name in names)
        state.open_score_columns(columns, data or PYTHON_DOCS)
        titles = " ".join(column.title for column in state.visible_columns if column.name in columns)
        state.notice = None
        self._jobs.start(job, f"measure {titles}", self._measured)
        self._layout.layer_table.reload()
        self._layout.refresh_bars()

    def _measured(self, result: AnyResult) -> None:
        assert isinstance(result, ScoreResult)
        scores = self._state.session.take_scores(result)
        for score in scores:
            self._state.score_columns.set_score(score)
        names = ", ".join(score.name for score in scores)
        notes = [f"{score.name}: {note}" for score in scores for note in score.notes]
        said = "\n".join([f"measured {names} · s sorts · * marks the lowest", *notes[:_MOST_NOTES]])
        more = f"\n{len(notes) - _MOST_NOTES} more in the detail of a layer" if len(notes) > _MOST_NOTES else ""
        self._state.set_notice(said + more, "warning" if notes else "success")
