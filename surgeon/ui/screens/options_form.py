"""The options of a drafted operation as a form, made from the operation's fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec
from rich.style import Style
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.message import Message
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from surgeon.core.recipe.command_text import option_text
from surgeon.core.recipe.operation import operations
from surgeon.core.selection.matrix_selection import GRAMMAR as MATRIX_GRAMMAR
from surgeon.core.selection.matrix_selection import MatrixSelection
from surgeon.core.selection.selection import GRAMMAR, Selection
from surgeon.errors import SurgeonError
from surgeon.ui.screens.dialogs import Dialog
from surgeon.ui.state.command_line import bare, operation_readers
from surgeon.ui.state.pending_step import Proposal, consequences, mentions, propose
from surgeon.ui.state.screen_state import Room
from surgeon.ui.theme import DARK_LOOKS, LIGHT_LOOKS

_REST_SECONDS = 0.2
_UNSAID = "–"


class Choice(Widget, can_focus=True):
    """One of a few words; ← and → choose."""

    BINDINGS = [("left,h", "step(-1)", "previous"), ("right,l,space", "step(1)", "next"), ("enter", "submit", "accept")]  # noqa: RUF012

    class Changed(Message):
        """Another word was chosen."""

    class Submitted(Message):
        """Enter was pressed."""

    def __init__(self, words: Sequence[str], word: str, *, id: str) -> None:
        super().__init__(id=id)
        self.words, self.value = words, word
        self.styles.height = 1

    def action_step(self, change: int) -> None:
        """Choose a neighbour."""
        self.value = self.words[(self.words.index(self.value) + change) % len(self.words)]
        self.refresh()
        self.post_message(self.Changed())

    def action_submit(self) -> None:
        """Accept."""
        self.post_message(self.Submitted())

    def on_click(self, event: events.Click) -> None:
        """Choose the next word."""
        del event
        self.action_step(1)

    def render(self) -> Text:
        """Write the words, the chosen one in a frame."""
        looks = DARK_LOOKS if self.app.current_theme.dark else LIGHT_LOOKS
        text = Text()
        for word in self.words:
            chosen = word == self.value
            style = (looks.key if self.has_focus else looks.title) + Style(underline=True) if chosen else looks.dim
            text.append("▸" if chosen else " ", looks.accent)
            text.append(word, style)
            text.append("  ")
        return text


class OptionsForm(Dialog[dict[str, object]]):
    """Every field of the operation, judged while it is edited."""

    foot = "tab next · ←→ choose · enter accept · esc leave"

    def __init__(self, room: Room, proposal: Proposal) -> None:
        super().__init__()
        self._room, self._proposal = room, proposal
        self._timer: Timer | None = None
        self._kind = operations()[proposal.operation]
        self.heading = f"{proposal.operation.replace('_', '-')}: {self._kind.summary}"

    def body(self) -> ComposeResult:
        """Yield a line of explanation and an entry for each field."""
        with VerticalScroll(classes="fields", can_focus=False):
            for known in sorted(msgspec.structs.fields(self._kind), key=lambda field: not field.required):
                if known.name == "stack" and len(self._room.session.structure.stacks) == 1:
                    continue
                name = known.encode_name
                yield Static(
                    Text.assemble((name, self.looks.title), (f"  {_description(known.type)}", self.looks.dim)),
                    classes="label",
                )
                yield self._entry(name, known)
        yield Static(id="complaint")

    def _entry(self, name: str, known: Any) -> Widget:
        value = self._proposal.fields.get(name)
        default = known.default if known.default is not msgspec.NODEFAULT else None
        if get_origin(bare(known.type)) is Literal:
            words = [*([_UNSAID] if default is None else []), *map(str, get_args(bare(known.type)))]
            return Choice(words, str(value or default or words[0]), id=f"field-{name}")
        hint = (
            MATRIX_GRAMMAR
            if mentions(known.type, MatrixSelection)
            else GRAMMAR
            if mentions(known.type, Selection)
            else option_text(default)
            if default not in (None, ())
            else "nothing"
        )
        return Input(
            "" if value in (None, [], ()) else option_text(value), placeholder=hint, id=f"field-{name}", compact=True
        )

    def on_mount(self) -> None:
        """Judge the fields as they are; the first one's label is in view too, though its entry has the focus."""
        self._judge()
        self.call_after_refresh(self.query_one(VerticalScroll).scroll_home, animate=False)

    def _fields(self) -> dict[str, object]:
        readers = operation_readers(self._kind)
        fields: dict[str, object] = {}
        for known in msgspec.structs.fields(self._kind):
            found = self.query(f"#field-{known.encode_name}")
            if not found:
                continue
            entry = found.first()
            assert isinstance(entry, (Input, Choice))
            text = entry.value.strip()
            if text and not (isinstance(entry, Choice) and text in (known.default, _UNSAID)):
                fields[known.encode_name] = readers[known.encode_name.replace("_", "-")](text)
        return fields

    @on(Input.Changed)
    @on(Choice.Changed)
    def _changed(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        if self._room.hesitates:
            self._timer = self.set_timer(_REST_SECONDS, self._judge)
        else:
            self._judge()

    def _judge(self) -> None:
        proposal = self._judged()
        if isinstance(proposal, SurgeonError):
            self.complain(proposal)
            return
        says = " · ".join(consequences(self._room.session, proposal))
        self.query_one("#complaint", Static).update(Text(says, self.looks.accent))

    def _judged(self) -> Proposal | SurgeonError:
        try:
            proposal = propose(self._room.session, self._proposal.operation, self._fields())
        except SurgeonError as error:
            return error
        return proposal.error or proposal

    @on(Input.Submitted)
    @on(Choice.Submitted)
    def accept(self) -> None:
        """Answer, if the fields are right."""
        if isinstance(self._judged(), Proposal):
            self.dismiss(self._fields())


def _description(kind: Any) -> str:
    return next(
        (str(note.description) for note in getattr(kind, "__metadata__", ()) if getattr(note, "description", None)), ""
    )
