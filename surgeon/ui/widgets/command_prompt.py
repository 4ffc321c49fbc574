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
from surgeon.ui.state.command_line import completion, parse_line
from surgeon.ui.state.pending_step import consequences, propose
from surgeon.ui.state.screen_state import Room
from surgeon.ui.theme import DARK_LOOKS, LIGHT_LOOKS

_REST_SECONDS = 0.2


class _Completer(Suggester):
    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        return completion(value)


class Prompt(ModalScreen[str | None]):
    """One line at the bottom. Answers with the line once it is right; esc leaves."""

    BINDINGS = [("escape", "dismiss(None)", "leave"), ("tab", "complete", "complete")]  # noqa: RUF012 - Textual declares it so

    def __init__(self, room: Room, text: str) -> None:
        super().__init__()
        self._room, self._text = room, text
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """Yield the line and what it would do."""
        with Vertical(id="prompt"):
            yield Static(id="would")
            yield Input(
                self._text,
                id="line",
                compact=True,
                suggester=_Completer(),
                select_on_focus=False,
                placeholder="prune --layers 4-5   score --by block_influence   undo   write   export DIR",
            )

    def on_mount(self) -> None:
        """Judge what is there already."""
        self._judge(self._text)

    def action_complete(self) -> None:
        """Take the suggestion."""
        line = self.query_one("#line", Input)
        suggested = completion(line.value)
        if suggested is not None:
            line.value = suggested
            line.cursor_position = len(suggested)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        if self._timer is not None:
            self._timer.stop()
        if self._room.hesitates:
            self._timer = self.set_timer(_REST_SECONDS, lambda: self._judge(event.value))
        else:
            self._judge(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if not event.value.strip() or self._judge(event.value):
            self.dismiss(event.value.strip() or None)

    def _judge(self, text: str) -> bool:
        looks = DARK_LOOKS if self.app.current_theme.dark else LIGHT_LOOKS
        would = self.query_one("#would", Static)
        if not text.strip():
            would.update(Text("the words of surgeon on a shell; the model is the one on the table", looks.dim))
            return False
        try:
            line = parse_line(text, self._room.session.model)
            if line.operation is None:
                would.update(Text("enter does it", looks.dim))
                return True
            proposal = propose(self._room.session, line.operation, line.options)
            if proposal.error is not None:
                raise proposal.error
        except SurgeonError as error:
            would.update(Text(str(error), looks.warning))
            return False
        would.update(Text(" · ".join(consequences(self._room.session, proposal)), looks.accent))
        return True
