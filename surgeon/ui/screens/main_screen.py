"""The main screen: turns keys, clicks and typed lines into changes of the state and actions."""

from __future__ import annotations

from textual import actions as textual_actions
from textual import on
from textual.binding import Binding

from surgeon.errors import SurgeonError
from surgeon.ui.command_line import parse_line
from surgeon.ui.commands import command_by_id, commands
from surgeon.ui.screens.actions.command_dispatch import execute_line
from surgeon.ui.screens.actions.main_screen_actions import MainScreenActions
from surgeon.ui.screens.main_layout import MainLayout
from surgeon.ui.state.job_runner import JobDefaults, JobRunner
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.widgets.layer_table import LayerTable
from surgeon.ui.widgets.text_list import TextList

_EVENT_POLLS_PER_SECOND = 15


class MainScreen(MainLayout):
    """What the user works on. Each `action_…` method is the action of a command, see `surgeon.ui.commands`.

    Dialogs are imported when they are first opened: the first paint needs none.
    """

    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        Binding(key, f"command('{command.id}')", command.title, id=f"{command.id}:{key}", show=False)
        for command in commands()
        for key in command.keys
        if key != "ctrl+p"  # the app binds it
    ]

    def __init__(self, state: ScreenState, runner: JobRunner, defaults: JobDefaults) -> None:
        super().__init__(state, runner)
        self.actions = MainScreenActions(self, defaults)

    def on_mount(self) -> None:
        """Start the only timer; everything else waits for a key or an event."""
        self.set_interval(1 / _EVENT_POLLS_PER_SECOND, self._poll)

    def _poll(self) -> None:
        self.actions.steps.evaluate_after_pause()
        self.actions.jobs.show_events()

    # ── commands ──

    def action_command(self, command_id: str) -> None:
        """Run a command, or say why it cannot be done now."""
        command = command_by_id(command_id)
        reason = command.reason(self.state)
        if reason is not None:
            self.state.set_notice(reason, "warning")
            self.refresh_bars()
            return
        _, name, arguments = textual_actions.parse(command.action)
        try:
            getattr(self, f"action_{name}")(*arguments)
        except SurgeonError as error:
            self.state.set_notice(str(error), "error")
            self.refresh_bars()

    def action_command_line(self, text: str = "") -> None:
        """Open the `:` line."""
        from surgeon.ui.screens.command_prompt import CommandPrompt

        self.app.push_screen(CommandPrompt(self.state, text), self._line_typed)

    def _line_typed(self, text: str | None) -> None:
        if not text:
            return
        try:
            execute_line(parse_line(text, self.state.session.model), self, self.actions, self.action_command)
        except SurgeonError as error:
            self.state.set_notice(str(error), "error")
            self.refresh_bars()

    def action_command_palette(self) -> None:
        """Open Textual's command palette."""
        self.app.action_command_palette()

    # ── moving ──

    @property
    def _focused_list(self) -> TextList | None:
        """The list that has the focus, if it is not the layer table."""
        return self.focused if isinstance(self.focused, TextList) else None

    def action_move(self, change: int, extend: bool = False) -> None:
        """Move within the focused pane; `extend` draws a range of layers."""
        if self._focused_list is not None:
            self._focused_list.move(change)
            return
        before = self.state.cursor
        had_range = self.state.anchor is not None
        self.state.move_to(before + change, extend=extend)
        if self.state.pending_step is None:
            self.state.notice = None
        if had_range or self.state.anchor is not None:
            self.layer_table.refresh()
        else:
            self.layer_table.repaint_lines({before, self.state.cursor})
        self.layer_table.keep_cursor_in_view()
        self.detail_pane.reload()
        self.message_bar.refresh(layout=True)

    def action_move_page(self, direction: int) -> None:
        """Move by half of the lines in view."""
        self.action_move(direction * (self._focused_list or self.layer_table).half_page)

    def action_move_sideways(self, change: int) -> None:
        """Extend or shrink the pending step, else go to another score column."""
        if self.state.pending_step is not None:
            self.state.extend(change)
            self.refresh_selection()
        elif self.state.visible_columns:
            last = len(self.state.visible_columns) - 1
            self.state.active_column = min(max(self.state.active_column + change, 0), last)
            self.layer_table.reload()

    def action_show_pane(self, name: str) -> None:
        """Focus a pane."""
        self.show_pane(name)

    def action_next_pane(self, change: int) -> None:
        """Focus the next or the previous pane."""
        self.show_next_pane(change)

    def action_next_stack(self) -> None:
        """List the layers of another stack."""
        self.state.next_stack()
        self.reload()

    # ── marks and steps ──

    def action_toggle_mark(self) -> None:
        """Mark or unmark the layer and go on to the next."""
        had_range = self.state.anchor is not None
        self.state.toggle_mark()
        if not had_range and self.state.pending_step is None and self.state.notice is None:
            self.state.move_to(self.state.cursor + 1)
        self.refresh_selection()

    def action_toggle_range(self) -> None:
        """Start or end a range."""
        self.state.toggle_range()
        self.refresh_selection()

    def action_start_step(self, operation: str) -> None:
        """Make an operation on the marked layers the pending step; ask for the options that it needs."""
        self.state.start_step(operation)
        self.refresh_selection()
        step = self.state.pending_step
        if step is not None and (step.incomplete or not step.takes_layers):
            self.action_edit_options()

    def action_edit_options(self) -> None:
        """Edit the options of the pending step."""
        self.actions.steps.edit_options()

    def action_enter(self) -> None:
        """Apply the pending step; in the recipe show the step; on a layer show its details."""
        if self.state.pending_step is not None:
            self.actions.steps.apply_pending_step()
        elif self.focused is self.recipe_pane:
            self.actions.steps.show_step(self.recipe_pane.cursor or 0)
        elif self.focused is self.layer_table:
            self.show_pane("detail")

    def action_escape(self) -> None:
        """Leave the pane, else discard the pending step, the range, the marks or the filter."""
        if self._focused_list is not None and self.state.pending_step is None:
            self.show_pane("layers")
            return
        self.state.discard()
        self.refresh_selection()

    def action_undo(self) -> None:
        """Undo a step."""
        self.state.undo()
        self.reload()

    def action_redo(self) -> None:
        """Redo a step."""
        self.state.redo()
        self.reload()

    # ── scores, training, the worker ──

    def action_choose_scores(self) -> None:
        """Ask which scores to measure, then measure them."""
        self.actions.scores.choose()

    def action_cycle_sort(self) -> None:
        """Sort by the active score."""
        self.state.cycle_sort()
        self.layer_table.reload()

    def action_train_applied_steps(self) -> None:
        """Train the applied steps that have no result yet; measure those that have no figures."""
        if self.state.session.plan.pending:
            self.actions.training.train_applied_steps()
        else:
            self.actions.evaluation.measure()

    def action_cancel_job(self) -> None:
        """Cancel the job."""
        self.actions.jobs.cancel()

    def action_restart_worker(self) -> None:
        """Restart the worker."""
        self.actions.jobs.restart_worker()

    # ── files and text ──

    def action_write_recipe(self) -> None:
        """Write the recipe."""
        self.actions.files.write_recipe()

    def action_export(self) -> None:
        """Export the model."""
        self.actions.files.export()

    def action_quit(self) -> None:
        """Quit, or ask what to do with unsaved steps."""
        self.actions.files.quit()

    def action_show_comparison(self) -> None:
        """Compare with the base."""
        from surgeon.ui.screens.compare_screen import CompareScreen

        session = self.state.session
        results = tuple(self.state.results.measured_after(session.steps[: session.position]))
        self.app.push_screen(CompareScreen(session, results))

    def action_show_log(self) -> None:
        """Show the worker's log."""
        from surgeon.ui.screens.log_screen import LogScreen

        self.app.push_screen(LogScreen(self.runner))

    def action_show_help(self) -> None:
        """Show every command."""
        from surgeon.ui.screens.help_screen import HelpScreen

        self.app.push_screen(HelpScreen(self.state, self.focused))

    # ── mouse ──

    @on(LayerTable.Clicked)
    def _table_clicked(self, event: LayerTable.Clicked) -> None:
        if event.column is not None:
            self.state.active_column = event.column
            self.action_cycle_sort()
        elif event.line is not None:
            self.show_pane("layers")
            self.state.move_to(event.line)
            self.refresh_selection()

    @on(TextList.Clicked)
    def _list_clicked(self, event: TextList.Clicked) -> None:
        if event.widget is self.recipe_pane:
            self.recipe_pane.cursor = min(event.line, len(self.state.session.steps))
            self.recipe_pane.refresh()
