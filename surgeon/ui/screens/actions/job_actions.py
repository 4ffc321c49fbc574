"""Jobs on the worker: starting, cancelling, and showing what their events bring."""

from __future__ import annotations

from collections.abc import Callable

from surgeon.core.job_results import AnyResult
from surgeon.core.jobs import AnyJob, CheckJob
from surgeon.errors import Cancelled, SurgeonError
from surgeon.ui.screens.main_layout import MainLayout

OnResult = Callable[[AnyResult], None]


class JobActions:
    """Runs one job at a time."""

    def __init__(self, layout: MainLayout) -> None:
        self._layout, self._state, self._runner = layout, layout.state, layout.runner
        self._shown_seconds = 0

    def show_events(self) -> None:
        """Show the events since the last call. Repaints nothing where there are none."""
        layout, state = self._layout, self._state
        changed, any_events = self._runner.handle_events(state.score_columns)
        if changed:
            columns = [column for column in state.visible_columns if changed & column.values.keys()]
            # A new value changes the scale of its column, and with it the other bars and colours.
            layout.layer_table.repaint_layers(changed.union(*(column.values for column in columns)))
            if state.sort is not None:
                state.reorder()
                layout.layer_table.reload()
            if state.current_row.key in changed:
                layout.detail_pane.reload()
        if self._runner.fit_wanted:
            self._runner.fit_wanted = False
            layout.run_worker(self._check_base(), group="check", exit_on_error=False)
        running = self._runner.running
        seconds = int(running.elapsed) if running is not None else 0
        if any_events or seconds != self._shown_seconds:
            self._shown_seconds = seconds
            layout.job_bar.reload()

    async def _check_base(self) -> None:
        """Have the worker judge the base, and say so only where something is wrong."""
        session = self._state.session
        job = CheckJob(model=session.model, trust_remote_code=session.checkpoint.trust_remote_code)
        fault = await self._runner.check(job)
        if fault and not self._state.base_fault:
            self._state.take_fault(fault)
            self._layout.header_bar.refresh()
            self._layout.refresh_bars()

    def start(self, job: AnyJob, title: str, on_result: OnResult, kept: str = "") -> None:
        """Start a job; `kept` says what remains of it when it is stopped, beside the scores so far."""
        self._state.job_title = title
        self._layout.run_worker(self._run(job, title, on_result, kept), group="job", exit_on_error=False)

    async def _run(self, job: AnyJob, title: str, on_result: OnResult, kept: str) -> None:
        try:
            result = await self._runner.run(job, title, self._state.session.revision)
        except SurgeonError as error:
            self.show_events()
            self._state.job_title = None
            self._show_failure(title, error, kept)
        else:
            self.show_events()
            self._state.job_title = None
            on_result(result)
        self._state.score_columns.close()
        self._state.reorder()
        self._layout.reload()

    def _show_failure(self, title: str, error: SurgeonError, kept: str) -> None:
        from surgeon.ui.screens.error_dialog import ErrorDialog

        state = self._state
        kept = kept or ("what has arrived stays" if state.visible_columns else "")
        if isinstance(error, Cancelled):
            state.set_notice(f"cancelled: {title}\n{kept}", "warning")
        elif self._runner.crash is not None:
            more = " · ".join(part for part in (kept, "the recipe is untouched", error.hint) if part)
            state.set_notice(f"the worker {error.what}: {title} is not finished\n{more}", "error")
        else:
            state.set_notice(f"{title} failed", "error")
            self._layout.app.push_screen(ErrorDialog(title, error))

    def cancel(self) -> None:
        """Cancel the job; the second time, end the worker."""
        self._layout.run_worker(self._runner.cancel(), group="cancel", exit_on_error=False)
        self._layout.call_after_refresh(self._layout.job_bar.refresh)

    def restart_worker(self) -> None:
        """Restart the worker."""
        self._layout.run_worker(self._restart(), group="job", exit_on_error=False)

    async def _restart(self) -> None:
        self._state.set_notice("starting the worker…")
        self._layout.refresh_bars()
        try:
            await self._runner.restart()
        except SurgeonError as error:
            self._state.set_notice(str(error), "error")
        else:
            self._state.set_notice("the worker is ready", "success")
        self._layout.refresh_bars()
