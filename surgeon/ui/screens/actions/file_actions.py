"""Writing the recipe, exporting the model, quitting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.core.jobs import AnyResult, RunResult, not_proved
from surgeon.errors import SurgeonError
from surgeon.ui.screens.actions.job_actions import JobActions
from surgeon.ui.screens.actions.training_actions import TrainingActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.formatting import bytes_text, count_text
from surgeon.ui.state.job_runner import JobDefaults
from surgeon.ui.state.step_results import results_of

if TYPE_CHECKING:
    from surgeon.ui.screens.export_dialog import ExportOptions
    from surgeon.ui.screens.quit_dialog import QuitChoice


class FileActions:
    """Asks for the paths it needs."""

    def __init__(self, layout: MainLayout, jobs: JobActions, training: TrainingActions, defaults: JobDefaults) -> None:
        self._layout, self._state = layout, layout.state
        self._jobs, self._training, self._defaults = jobs, training, defaults

    # ── recipe ──

    def write_recipe(self, path: str | None = None) -> None:
        """Write the recipe; ask for a file name if it has none."""
        path = path or self._recipe_path
        if path is not None:
            self._write(path)
        else:
            self._ask_for_name(self._write)

    @property
    def _recipe_path(self) -> str | None:
        path = self._state.session.recipe_path
        return str(path) if path is not None else None

    def _ask_for_name(self, on_name: Callable[[str], object]) -> None:
        from surgeon.ui.screens.save_dialog import SaveDialog

        def chosen(name: str | None) -> None:
            if name:
                on_name(name)

        suggestion = self._state.session.checkpoint.path.name.lower() or "model"
        self._layout.app.push_screen(SaveDialog(f"{suggestion}.yaml"), chosen)

    def _write(self, path: str) -> bool:
        try:
            written = self._state.session.save(Path(path).expanduser())
        except (SurgeonError, OSError) as error:
            self._state.set_notice(str(error), "error")
            self._layout.refresh_bars()
            return False
        self._state.set_notice(f"recipe written to {written}\n$ surgeon run {written} --out DIR", "success")
        self._layout.reload()
        return True

    # ── export ──

    def export(self) -> None:
        """Ask for a directory, then export."""
        from surgeon.ui.screens.export_dialog import ExportDialog

        self._layout.app.push_screen(ExportDialog(self._state.session), self._export_chosen)

    def _export_chosen(self, options: ExportOptions | None) -> None:
        if options is not None:
            self.export_to(options.out, verify=options.verify)

    def export_to(self, out: Path, *, verify: bool) -> None:
        """Export the base with the applied steps."""
        settings = {"device": self._defaults.device, "dtype": self._defaults.dtype}
        settings = {name: value for name, value in settings.items() if value}
        job = self._state.session.run_job(out, verify=verify, **settings)
        self._state.notice = None
        self._jobs.start(job, f"export {out.name}", self._exported)
        self._layout.refresh_bars()

    def _exported(self, result: AnyResult) -> None:
        assert isinstance(result, RunResult)
        if self._state.session.plan.pending and not self._training.take_results(result):
            return
        self._state.results.take(self._state.session.steps, results_of(result.evaluations))
        size = f"{count_text(result.parameters)} params, {bytes_text(result.bytes)}"
        unproved = not_proved(result.proof or {})
        proven = f"not proved: {', '.join(unproved)}" if unproved else "reloaded and proven equal"
        proof = proven if result.proof else "not verified"
        self._state.set_notice(f"exported to {result.out}\n{size} · {proof}", "success")

    # ── quitting ──

    def quit(self) -> None:
        """Quit; ask first if there are unsaved steps, or a job is under way."""
        from surgeon.ui.screens.quit_dialog import QuitDialog

        if self._state.session.unsaved or self._state.job_title:
            self._layout.app.push_screen(QuitDialog(self._state.session, self._state.job_title), self._quit_chosen)
        else:
            self._exit()

    def _quit_chosen(self, choice: QuitChoice | None) -> None:
        if choice == "write" and self._recipe_path is not None:
            self._write_and_exit(self._recipe_path)
        elif choice == "write":
            self._ask_for_name(self._write_and_exit)
        elif choice == "end":
            self._exit()
        elif choice is not None:
            self._state.keep_journal = choice == "keep"
            self._exit()

    def _write_and_exit(self, path: str) -> None:
        if self._write(path):
            self._exit()

    def _exit(self) -> None:
        self._layout.app.exit(0)
