"""The main screen: lays out the panes and strips, and hands keys to the room and jobs to the desk."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Static

from surgeon.errors import SurgeonError
from surgeon.ui.commands import command_of, commands
from surgeon.ui.screens.actions import Errands
from surgeon.ui.state.job_runner import Desk
from surgeon.ui.state.screen_state import Room
from surgeon.ui.widgets.layer_table import LayerTable
from surgeon.ui.widgets.list_view import Lines
from surgeon.ui.widgets.panes import DetailPane, RecipePane
from surgeon.ui.widgets.status_bars import HeaderStrip, JobStrip, KeyStrip, MessageStrip

if TYPE_CHECKING:
    from surgeon.ui.app import SurgeonApp

MIN_WIDTH, MIN_HEIGHT, WIDE = 80, 24, 120
_TICKS_PER_SECOND = 15
_PANES = ("layers", "detail", "recipe")


class MainScreen(Screen[None]):
    """Everything a person sees while operating."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 - Textual declares it so
    AUTO_FOCUS = "#layers"
    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        Binding(key, f"command('{command.id}')", command.title, id=f"{command.id}:{key}", show=False)
        for command in commands()
        for key in command.keys
        if key != "ctrl+p"  # the app's own
    ]

    def __init__(self, room: Room, desk: Desk) -> None:
        super().__init__()
        self.room, self.desk = room, desk
        self.errands = Errands(self)
        self.pane = "layers"

    def compose(self) -> ComposeResult:
        """Lay out the widgets."""
        self.table, self.detail, self.recipe = LayerTable(self.room), DetailPane(self.room), RecipePane(self.room)
        self.header, self.message = HeaderStrip(self.room, id="header"), MessageStrip(self.room, id="message")
        self.job = JobStrip(self.room, self.desk, id="job")
        self.keys = KeyStrip(self.room, commands(), id="keys")
        yield self.header
        with Horizontal(id="floor"):
            yield self.table
            with Vertical(id="side"):
                yield self.detail
                yield self.recipe
        yield self.message
        yield self.job
        yield self.keys
        yield Static(id="too-small")

    @property
    def surgeon(self) -> SurgeonApp:
        """The app, as what it is."""
        return cast("SurgeonApp", self.app)

    def on_mount(self) -> None:
        """Start the one timer; everything else waits for a key or an event."""
        # The breakpoints follow only after the first layout, which would show for a moment.
        wide = self.app.size.width >= WIDE
        self.set_class(wide, "-wide")
        self.set_class(not wide, "-narrow")
        self.show_pane("layers")
        self.show()
        self.set_interval(1 / _TICKS_PER_SECOND, self.errands.tick)
        self.app.theme_changed_signal.subscribe(self, lambda _: self.show())

    def on_resize(self) -> None:
        """Say so where the terminal is too small, instead of a garbled table."""
        width, height = self.app.size
        small = width < MIN_WIDTH or height < MIN_HEIGHT
        self.set_class(small, "-too-small")
        if small:
            self.query_one("#too-small", Static).update(
                f"surgeon needs {MIN_WIDTH}×{MIN_HEIGHT},\nthis terminal is {width}×{height}"
            )

    # ── showing ──

    def show(self) -> None:
        """Paint everything again: the session has moved."""
        self.table.show_all()
        self.recipe.show()
        self.recipe.follow()
        self.detail.show()
        self.header.refresh()
        self.show_message()

    def show_message(self) -> None:
        """Paint the message and what depends on the mode."""
        self.message.refresh(layout=True)
        self.job.refresh()
        self.keys.refresh()

    def show_marks(self) -> None:
        """Cursor, marks or the proposal have changed, but not the model."""
        self.table.keep_cursor_in_view()
        self.table.refresh()
        self.detail.show()
        self.show_message()

    # ── keys ──

    def action_command(self, name: str) -> None:
        """Do what a command does, or say why it can not be done now."""
        command = command_of(name)
        reason = command.reason(self.room)
        if reason is not None:
            self.room.say(reason, "warning")
            self.show_message()
            return
        try:
            command.handler(self)
        except SurgeonError as error:
            self.room.say(str(error), "bad")
            self.show_message()

    @property
    def listed(self) -> Lines | None:
        """The list that has the focus, if it is not the table."""
        return self.focused if isinstance(self.focused, Lines) else None

    def move(self, change: int, *, extend: bool = False) -> None:
        """Move within the pane that has the focus."""
        if self.listed is not None:
            self.listed.move(change)
            return
        before = self.room.cursor
        wide = self.room.anchor is not None
        self.room.move_to(before + change, extend=extend)
        if self.room.proposal is None:
            self.room.notice = None
        if wide or self.room.anchor is not None:
            self.table.refresh()
        else:
            self.table.show_places({before, self.room.cursor})
        self.table.keep_cursor_in_view()
        self.detail.show()
        self.message.refresh(layout=True)

    def page(self, direction: int) -> None:
        """Move by half of what is in view."""
        self.move(direction * (self.listed or self.table).page)

    def sideways(self, change: int) -> None:
        """Widen or narrow the draft, else choose another score."""
        if self.room.proposal is not None:
            self.room.widen(change)
            self.show_marks()
        elif self.room.columns:
            self.room.active = min(max(self.room.active + change, 0), len(self.room.columns) - 1)
            self.table.show_all()

    def show_pane(self, name: str) -> None:
        """Focus a pane; a narrow screen shows only that one."""
        self.pane = name
        for other in _PANES:
            self.set_class(other == name, f"-pane-{other}")
        pane = self.query_one(f"#{name}")
        # A pane that is hidden until this style change takes effect could not be focused yet.
        self.call_after_refresh(pane.focus)

    def next_pane(self, change: int) -> None:
        """Go round the panes."""
        self.show_pane(_PANES[(_PANES.index(self.pane) + change) % len(_PANES)])

    def next_stack(self) -> None:
        """Show another stack of layers."""
        self.room.next_stack()
        self.show()

    def mark(self) -> None:
        """Mark the row and go on to the next."""
        ranged = self.room.anchor is not None
        self.room.toggle_mark()
        if not ranged and self.room.proposal is None and self.room.notice is None:
            self.room.move_to(self.room.cursor + 1)
        self.show_marks()

    def toggle_range(self) -> None:
        """Start or end a range."""
        self.room.toggle_range()
        self.show_marks()

    def draft(self, operation: str) -> None:
        """Draft an operation on the chosen layers."""
        self.room.open_proposal(operation)
        self.show_marks()
        if self.room.proposal is not None and (self.room.proposal.incomplete or not self.room.proposal.chooses):
            self.options()

    def options(self) -> None:
        """Edit the options of the draft."""
        self.errands.options()

    def enter(self) -> None:
        """Apply the draft; in the recipe go to the step; on a layer show its details."""
        if self.room.proposal is not None:
            self.errands.lessons.apply()
        elif self.focused is self.recipe:
            self.room.go_to(self.recipe.cursor or 0)
            self.show()
        elif self.focused is self.table:
            self.show_pane("detail")

    def leave(self) -> None:
        """Leave the draft, else the range, else the marks, else the pane."""
        if self.listed is not None and self.room.proposal is None:
            self.show_pane("layers")
            return
        self.room.leave()
        self.show_marks()

    def undo(self) -> None:
        """Undo a step."""
        self.room.undo()
        self.show()

    def redo(self) -> None:
        """Redo a step."""
        self.room.redo()
        self.show()

    def cycle_sort(self) -> None:
        """Sort by the active score."""
        self.room.cycle_sort()
        self.table.show_all()

    # ── errands: what needs a dialog or the worker ──

    def choose_scores(self) -> None:
        """Ask which scores, then measure them."""
        self.errands.choose_scores()

    def cancel(self) -> None:
        """Cancel the job."""
        self.errands.cancel()

    def restart(self) -> None:
        """Restart the worker."""
        self.errands.restart()

    def show_log(self) -> None:
        """Show the log."""
        self.errands.log()

    def show_help(self) -> None:
        """Show the help."""
        self.errands.help()

    def write(self) -> None:
        """Write the recipe."""
        self.errands.write()

    def export(self) -> None:
        """Export the model."""
        self.errands.export()

    def quit(self) -> None:
        """Quit, or ask."""
        self.errands.quit()

    def command_line(self, text: str = "") -> None:
        """Open the `:` line."""
        self.errands.command_line(text)

    # ── mouse ──

    @on(LayerTable.Clicked)
    def _table_clicked(self, event: LayerTable.Clicked) -> None:
        if event.column is not None:
            self.room.active = event.column
            self.cycle_sort()
        elif event.place is not None:
            self.show_pane("layers")
            self.room.move_to(event.place)
            self.show_marks()

    @on(Lines.Clicked)
    def _line_clicked(self, event: Lines.Clicked) -> None:
        if event.widget is self.recipe:
            self.recipe.cursor = min(event.line, len(self.room.session.steps))
            self.recipe.refresh()
