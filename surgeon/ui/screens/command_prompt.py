"""The `:` line on screen: completes while you type and shows what enter would do."""

from __future__ import annotations

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.timer import Timer
from textual.widgets import Input, Static

from surgeon.errors import SurgeonError
from surgeon.ui.command_line import completion, parse_line
from surgeon.ui.state.layer_listing import step_numbers_text
from surgeon.ui.state.pending_step import evaluate_operation
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.state.step_text import step_effects
from surgeon.ui.theme import theme_styles

_PAUSE_SECONDS = 0.2


class _CommandSuggester(Suggester):
    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        return completion(value)


class CommandPrompt(ModalScreen[str | None]):
    """One line at the bottom. Results in the line once it is valid; esc leaves."""

    BINDINGS = [("escape", "dismiss(None)", "leave"), ("tab", "complete", "complete")]  # noqa: RUF012 - Textual declares it so

    def __init__(self, state: ScreenState, text: str) -> None:
        super().__init__()
        self._state, self._text = state, text
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """Yield the input and what it would do."""
        with Vertical(id="prompt"):
            yield Static(id="effects")
            yield Input(
                self._text,
                id="line",
                compact=True,
                suggester=_CommandSuggester(),
                select_on_focus=False,
                placeholder="prune --layers 4-5   score --by block_influence   undo   write   export DIR",
            )

    def on_mount(self) -> None:
        """Evaluate the initial text."""
        self._evaluate(self._text)

    def action_complete(self) -> None:
        """Accept the suggestion."""
        line = self.query_one("#line", Input)
        suggestion = completion(line.value)
        if suggestion is not None:
            line.value = suggestion
            line.cursor_position = len(suggestion)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        if self._timer is not None:
            self._timer.stop()
        if self._state.defers_evaluation:
            self._timer = self.set_timer(_PAUSE_SECONDS, lambda: self._evaluate(event.value))
        else:
            self._evaluate(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if not event.value.strip() or self._evaluate(event.value):
            self.dismiss(event.value.strip() or None)

    def _evaluate(self, text: str) -> bool:
        """Show what the line would do; False where it is not valid."""
        styles, session = theme_styles(self.app), self._state.session
        effects = self.query_one("#effects", Static)
        if not text.strip():
            effects.update(Text("the words of surgeon on a shell; the model is the one on the table", styles.dim))
            return False
        try:
            line = parse_line(text, session.model)
            if line.operation is None:
                effects.update(Text("enter does it", styles.dim))
                return True
            step = evaluate_operation(session, line.operation, self._state.line_fields(line.operation, line.options))
            if step.error is not None:
                raise step.error
        except SurgeonError as error:
            effects.update(Text(step_numbers_text(str(error)), styles.warning))
            return False
        effects.update(Text(" · ".join(step_effects(session, step)), styles.accent))
        return True
