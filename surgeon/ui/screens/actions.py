"""What takes longer than a key press: dialogs, jobs on the worker, and the tick that shows what they bring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.errors import Cancelled, SurgeonError
from surgeon.ui.command_dispatch import obey
from surgeon.ui.screens.training_actions import Lessons
from surgeon.ui.state.command_line import known_scores, parse_line
from surgeon.ui.state.formatting import bytes_text, count_text

if TYPE_CHECKING:
    from surgeon.ui.screens.dialogs import ExportWish
    from surgeon.ui.screens.main_screen import MainScreen
    from surgeon.ui.screens.score_dialog import ScoreWish
    from surgeon.ui.state.pending_step import Proposal

_REST_TICKS = 3


class Errands:
    """Belongs to the main screen. Dialogs are imported when they are first opened: the first paint needs none."""

    def __init__(self, screen: MainScreen) -> None:
        self.screen = screen
        self.room, self.desk = screen.room, screen.desk
        self.lessons = Lessons(self)
        self._job_seconds = 0
        self._waiting: Proposal | None = None
        self._rested = 0

    # ── the tick ──

    def tick(self) -> None:
        """Show what has come since the last tick. Does nothing, and paints nothing, when nothing has."""
        self._judge()
        changed, news = self._drain()
        if changed:
            columns = [column for column in self.room.columns if changed & column.values.keys()]
            # A new value moves the others' bars and colours, within its own column's scale.
            self.screen.table.show_rows(changed.union(*(column.values for column in columns)))
            if self.room.sort is not None:
                self.room.reorder()
                self.screen.table.show_all()
            if self.room.row.key in changed:
                self.screen.detail.show()
        running = self.desk.running
        seconds = int(running.elapsed) if running is not None else 0
        if news or seconds != self._job_seconds:
            self._job_seconds = seconds
            self.screen.job.show()

    def _judge(self) -> None:
        """Judge a proposal that was put off, once the keys have rested for a few ticks."""
        proposal = self.room.proposal
        waiting = proposal if proposal is not None and not proposal.judged else None
        self._rested = self._rested + 1 if waiting is not None and waiting is self._waiting else 0
        self._waiting = waiting
        if self._rested >= _REST_TICKS:
            self.room.judge()
            self.screen.show_message()

    def _drain(self) -> tuple[set[str], bool]:
        changed: set[str] = set()
        news = bool(self.desk.events)
        while self.desk.events:
            event = self.desk.events.popleft()
            if event.event == "scored":
                key = self.room.board.put(event.body)
                changed |= {key} if key is not None else set()
            else:
                self.desk.take(event)
        return changed, news

    # ── jobs ──

    def start(self, job: str, args: Mapping[str, Any], title: str, done: Any) -> None:
        """Hand a job to the worker; `done` takes its result."""
        self.room.job_title, self.lessons.under_way = title, job == "learn"
        self.screen.run_worker(self._run(job, args, title, done), group="job", exit_on_error=False)

    async def _run(self, job: str, args: Mapping[str, Any], title: str, done: Any) -> None:
        try:
            result = await self.desk.run(job, args, title, self.room.session.revision)
        except SurgeonError as error:
            self.tick()
            self.room.job_title = None
            self._failed(title, error)
        else:
            self.tick()
            self.room.job_title = None
            done(result)
        self.room.board.end()
        self.room.reorder()
        self.screen.show()

    def _failed(self, title: str, error: SurgeonError) -> None:
        kept = self.lessons.kept or ("what has arrived stays" if self.room.columns else "")
        if isinstance(error, Cancelled):
            self.room.say(f"cancelled: {title}\n{kept}", "warning")
        elif self.desk.crash is not None:
            more = " · ".join(part for part in (kept, "the recipe is untouched", error.hint) if part)
            self.room.say(f"the worker {error.what}: {title} is not finished\n{more}", "bad")
        else:
            self.room.say(f"{title} failed", "bad")
            self._show_error(title, error)

    def _show_error(self, title: str, error: SurgeonError) -> None:
        from surgeon.ui.screens.dialogs import ErrorDialog

        self.screen.app.push_screen(ErrorDialog(title, error))

    def cancel(self) -> None:
        """Cancel the job; asked again, end the worker."""
        self.screen.run_worker(self.desk.cancel(), group="cancel", exit_on_error=False)
        self.screen.call_after_refresh(self.screen.job.refresh)

    def restart(self) -> None:
        """Restart the worker."""
        self.screen.run_worker(self._restart(), group="job", exit_on_error=False)

    async def _restart(self) -> None:
        self.room.say("starting the worker…")
        self.screen.show_message()
        try:
            await self.desk.restart()
        except SurgeonError as error:
            self.room.say(str(error), "bad")
        else:
            self.room.say("the worker is ready", "good")
        self.screen.show_message()

    # ── scores ──

    def choose_scores(self) -> None:
        """Ask which scores and on what data."""
        from surgeon.ui.screens.score_dialog import ScoreDialog

        dialog = ScoreDialog(self.screen.surgeon.data, set(self.room.board.columns))
        self.screen.app.push_screen(dialog, self._score_wished)

    def _score_wished(self, wish: ScoreWish | None) -> None:
        if wish is not None:
            self.score(wish.names, wish.data, **wish.settings)

    def score(self, names: tuple[str, ...], data: str | None, **settings: Any) -> None:
        """Measure scores on the current draft.

        Raises:
            UsageError: there is no score of such a name.
        """
        surgeon, session, names = self.screen.surgeon, self.room.session, known_scores(names)
        chosen = {"device": surgeon.device, "dtype": surgeon.dtype, **settings}
        args = session.score_job(names, data, **{name: value for name, value in chosen.items() if value is not None})
        columns = tuple(name.partition("(")[0] for name in names)
        self.room.begin_scores(columns, data or PYTHON_DOCS)
        titles = " ".join(column.title for column in self.room.columns if column.name in columns)
        self.room.notice = None
        self.start("score", args, f"measure {titles}", self._scored)
        self.screen.table.show_all()
        self.screen.show_message()

    def _scored(self, result: Mapping[str, Any]) -> None:
        for score in self.room.session.take_scores(result):
            self.room.board.take(score)
        names = ", ".join(str(score["name"]) for score in result["scores"])
        self.room.say(f"measured {names} · s sorts · * marks the lowest", "good")

    # ── files ──

    def write(self, path: str | None = None) -> None:
        """Write the recipe, asking for a file name if it has none."""
        session = self.room.session
        if path or session.recipe_path is not None:
            self._write(path or str(session.recipe_path))
            return
        self._ask_name(self._write)

    def _ask_name(self, then: Any) -> None:
        from surgeon.ui.screens.dialogs import SaveDialog

        name = self.room.session.checkpoint.path.name.lower() or "model"
        self.screen.app.push_screen(SaveDialog(f"{name}.yaml"), lambda path: then(path) if path else None)

    def _write(self, path: str) -> bool:
        try:
            written = self.room.session.save(Path(path).expanduser())
        except (SurgeonError, OSError) as error:
            self.room.say(str(error), "bad")
            self.screen.show_message()
            return False
        self.room.say(f"recipe written to {written}\n$ surgeon run {written} --out DIR", "good")
        self.screen.show()
        return True

    def export(self) -> None:
        """Ask where to, then export."""
        from surgeon.ui.screens.dialogs import ExportDialog

        self.screen.app.push_screen(ExportDialog(self.room.session), self._export_wished)

    def _export_wished(self, wish: ExportWish | None) -> None:
        if wish is not None:
            self.export_to(wish.out, verify=wish.verify)

    def export_to(self, out: Path, *, verify: bool) -> None:
        """Export the applied steps."""
        surgeon = self.screen.surgeon
        settings = {"device": surgeon.device, "dtype": surgeon.dtype}
        settings = {name: value for name, value in settings.items() if value}
        args = self.room.session.run_job(out, verify=verify, **settings)
        self.room.notice = None
        self.start("run", args, f"export {out.name}", self._exported)
        self.screen.show_message()

    def _exported(self, result: Mapping[str, Any]) -> None:
        if self.room.session.plan.pending and not self.lessons.take(result):
            return
        size = f"{count_text(result.get('parameters', 0))} params, {bytes_text(result.get('bytes', 0))}"
        proof = "reloaded and proven equal" if result.get("proof") else "not verified"
        self.room.say(f"exported to {result.get('out')}\n{size} · {proof}", "good")

    # ── dialogs ──

    def options(self) -> None:
        """Edit the draft's options."""
        from surgeon.ui.screens.options_form import OptionsForm

        self.room.judge()
        if self.room.proposal is not None:
            self.screen.app.push_screen(OptionsForm(self.room, self.room.proposal), self._options_set)

    def _options_set(self, fields: dict[str, object] | None) -> None:
        if fields is not None and self.room.proposal is not None:
            self.room.set_fields(fields)
            self.screen.show_marks()

    def help(self) -> None:
        """Show every command."""
        from surgeon.ui.screens.text_screens import HelpScreen

        self.screen.app.push_screen(HelpScreen(self.room, self.screen.focused))

    def compare(self) -> None:
        """Show what the applied steps changed."""
        from surgeon.ui.screens.compare_screen import CompareScreen

        self.screen.app.push_screen(CompareScreen(self.room.session))

    def log(self) -> None:
        """Show what the worker said."""
        from surgeon.ui.screens.text_screens import LogScreen

        self.screen.app.push_screen(LogScreen(self.desk))

    def quit(self) -> None:
        """Quit; ask first if steps are not in the recipe."""
        if not self.room.session.unsaved:
            self.screen.app.exit(0)
            return
        from surgeon.ui.screens.dialogs import QuitDialog

        self.screen.app.push_screen(QuitDialog(self.room.session), self._quit_wished)

    def _quit_wished(self, answer: str | None) -> None:
        if answer == "write":
            session = self.room.session
            if session.recipe_path is not None:
                self._write_and_quit(str(session.recipe_path))
            else:
                self._ask_name(self._write_and_quit)
        elif answer == "keep":
            self.screen.surgeon.leave(keep_journal=True)
        elif answer == "discard":
            self.screen.surgeon.leave(keep_journal=False)

    def _write_and_quit(self, path: str) -> None:
        if self._write(path):
            self.screen.app.exit(0)

    # ── the `:` line ──

    def command_line(self, text: str) -> None:
        """Open the `:` line."""
        from surgeon.ui.widgets.command_prompt import Prompt

        self.screen.app.push_screen(Prompt(self.room, text), self._line_typed)

    def _line_typed(self, text: str | None) -> None:
        if not text:
            return
        try:
            obey(self.screen, parse_line(text, self.room.session.model))
        except SurgeonError as error:
            self.room.say(str(error), "bad")
            self.screen.show_message()
