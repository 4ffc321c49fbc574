"""The widgets of the main screen, their arrangement, and what is repainted when."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Static

from surgeon.ui.commands import commands
from surgeon.ui.state.job_runner import JobRunner
from surgeon.ui.state.layer_listing import Severity
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.widgets.detail_pane import DetailPane
from surgeon.ui.widgets.header_bar import HeaderBar
from surgeon.ui.widgets.job_bar import JobBar
from surgeon.ui.widgets.key_bar import KeyBar
from surgeon.ui.widgets.layer_table import LayerTable
from surgeon.ui.widgets.message_bar import MessageBar
from surgeon.ui.widgets.recipe_pane import RecipePane
from surgeon.ui.widgets.table_layout import wanted_width

MIN_WIDTH, MIN_HEIGHT, WIDE = 80, 24, 120
_PANES = ("layers", "detail", "recipe")
_SIDE_CELLS = 40
_TABLE_SHARE = 55


class MainLayout(Screen[None]):
    """Header, panes, message, job and keys. Knows nothing of commands and jobs but how they are shown."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 - Textual declares it so
    AUTO_FOCUS = "#layers"

    def __init__(self, state: ScreenState, runner: JobRunner) -> None:
        super().__init__()
        self.state, self.runner = state, runner
        self.current_pane = "layers"

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        state = self.state
        self.layer_table, self.detail_pane, self.recipe_pane = LayerTable(state), DetailPane(state), RecipePane(state)
        self.header_bar, self.message_bar = HeaderBar(state, id="header"), MessageBar(state, id="message")
        self.job_bar = JobBar(state, self.runner, id="job")
        self.key_bar = KeyBar(state, commands(), id="keys")
        yield self.header_bar
        with Horizontal(id="panes"):
            yield self.layer_table
            with Vertical(id="side-panes"):
                yield self.detail_pane
                yield self.recipe_pane
        yield self.message_bar
        yield self.job_bar
        yield self.key_bar
        yield Static(id="too-small")

    def on_mount(self) -> None:
        """Show the layers."""
        # Textual sets the breakpoint classes only after the first layout, which would be visible for a moment.
        wide = self.app.size.width >= WIDE
        self.set_class(wide, "-wide")
        self.set_class(not wide, "-narrow")
        self.show_pane("layers")
        self.reload()
        self.app.theme_changed_signal.subscribe(self, lambda _: self.reload())

    def on_resize(self) -> None:
        """Say so where the terminal is too small, instead of a garbled table."""
        width, height = self.app.size
        self._share_width()
        small = width < MIN_WIDTH or height < MIN_HEIGHT
        self.set_class(small, "-too-small")
        if small:
            self.query_one("#too-small", Static).update(
                f"surgeon needs {MIN_WIDTH}×{MIN_HEIGHT},\nthis terminal is {width}×{height}"
            )

    def _share_width(self) -> None:
        """Give the table what its scores need, and the panes beside it no less than they can be read in."""
        width = self.app.size.width
        wanted = max(wanted_width(self.state) + 2, width * _TABLE_SHARE // 100)
        self.layer_table.styles.width = min(wanted, width - _SIDE_CELLS) if width >= WIDE else None

    def reload(self) -> None:
        """Read everything again and repaint it: the session has changed."""
        self._share_width()
        self.layer_table.reload()
        self.recipe_pane.reload()
        self.recipe_pane.move_to_newest()
        self.detail_pane.reload()
        self.header_bar.refresh()
        self.refresh_bars()

    def refresh_bars(self) -> None:
        """Repaint the message and the bars that depend on the mode."""
        self.message_bar.refresh(layout=True)
        self.job_bar.refresh()
        self.key_bar.refresh()

    def say(self, text: str, severity: Severity = "info") -> None:
        """Show a message."""
        self.state.set_notice(text, severity)
        self.refresh_bars()

    def refresh_selection(self) -> None:
        """Repaint what depends on the cursor, the marks and the pending step; the model has not changed."""
        self.layer_table.keep_cursor_in_view()
        self.layer_table.refresh()
        self.detail_pane.reload()
        self.refresh_bars()

    def show_pane(self, name: str) -> None:
        """Focus a pane; a narrow screen shows only that one."""
        self.current_pane = name
        for other in _PANES:
            self.set_class(other == name, f"-pane-{other}")
        pane = self.query_one(f"#{name}")
        # A pane that stays hidden until this style change takes effect cannot be focused yet.
        self.call_after_refresh(pane.focus)

    def show_next_pane(self, change: int) -> None:
        """Focus another pane, in a cycle."""
        self.show_pane(_PANES[(_PANES.index(self.current_pane) + change) % len(_PANES)])
