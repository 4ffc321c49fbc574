"""Asks for the options of a pending step; the form is generated from the operation's fields."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import msgspec
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from surgeon.core.recipe.command_text import option_text
from surgeon.core.recipe.operation import operations
from surgeon.core.selection.selection import Selection
from surgeon.errors import SurgeonError
from surgeon.ui.screens.dialog import Dialog
from surgeon.ui.state.operation_options import option_parsers, unwrap_type
from surgeon.ui.state.pending_step import PendingStep, evaluate_operation
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.state.step_text import step_effects
from surgeon.ui.widgets.inline_choice import InlineChoice

_PAUSE_SECONDS = 0.2
_UNSET = "–"


class OptionsForm(Dialog[dict[str, object]]):
    """An entry for every field of the operation, evaluated while it is edited."""

    key_hints = "tab next · ←→ choose · enter accept · esc leave"

    def __init__(self, state: ScreenState, step: PendingStep) -> None:
        super().__init__()
        self._state, self._step = state, step
        self._timer: Timer | None = None
        self._kind = operations()[step.operation]
        self.heading = f"{step.operation.replace('_', '-')}: {self._kind.summary}"

    def compose_body(self) -> ComposeResult:
        """Yield a label and an entry for each field, the required ones first."""
        styles = self.theme_styles
        with VerticalScroll(classes="fields", can_focus=False):
            for info in sorted(msgspec.structs.fields(self._kind), key=lambda info: not info.required):
                if info.name == "stack" and len(self._state.session.structure.stacks) == 1:
                    continue
                name = info.encode_name
                label = Text.assemble((name, styles.title), (f"  {_description(info.type)}", styles.dim))
                yield Static(label, classes="label")
                yield self._entry(name, info)
        yield Static(id="validation")

    def _entry(self, name: str, info: msgspec.structs.FieldInfo) -> Widget:
        value = self._step.fields.get(name)
        default = info.default if info.default is not msgspec.NODEFAULT else None
        annotation = unwrap_type(info.type)
        if get_origin(annotation) is Literal:
            words = [*([_UNSET] if default is None else []), *map(str, get_args(annotation))]
            return InlineChoice(words, str(value or default or words[0]), id=f"field-{name}")
        if isinstance(annotation, type) and issubclass(annotation, Selection):
            placeholder = annotation.grammar
        else:
            placeholder = "nothing" if default in (None, ()) else option_text(default)
        text = "" if value in (None, [], ()) else option_text(value)
        return Input(text, placeholder=placeholder, id=f"field-{name}", compact=True)

    def on_mount(self) -> None:
        """Evaluate the fields as they are; scroll up, as the focused first entry would hide its label."""
        self._show_evaluation()
        self.call_after_refresh(self.query_one(VerticalScroll).scroll_home, animate=False)

    def _fields(self) -> dict[str, object]:
        parsers = option_parsers(self._kind)
        fields: dict[str, object] = {}
        for info in msgspec.structs.fields(self._kind):
            name = info.encode_name
            entries = self.query(f"#field-{name}")
            if not entries:
                continue
            entry = entries.first()
            assert isinstance(entry, (Input, InlineChoice))
            text = entry.value.strip()
            if text and not (isinstance(entry, InlineChoice) and text in (info.default, _UNSET)):
                fields[name] = parsers[name.replace("_", "-")](text)
        return fields

    @on(Input.Changed)
    @on(InlineChoice.Changed)
    def _changed(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        if self._state.defers_evaluation:
            self._timer = self.set_timer(_PAUSE_SECONDS, self._show_evaluation)
        else:
            self._show_evaluation()

    def _show_evaluation(self) -> None:
        step = self._evaluate()
        if isinstance(step, SurgeonError):
            self.show_error(step)
            return
        effects = " · ".join(step_effects(self._state.session, step))
        self.query_one("#validation", Static).update(Text(effects, self.theme_styles.accent))

    def _evaluate(self) -> PendingStep | SurgeonError:
        try:
            step = evaluate_operation(self._state.session, self._step.operation, self._fields())
        except SurgeonError as error:
            return error
        return step.error or step

    @on(Input.Submitted)
    @on(InlineChoice.Submitted)
    def accept(self) -> None:
        """Accept, if the fields are valid."""
        if isinstance(self._evaluate(), PendingStep):
            self.dismiss(self._fields())


def _description(annotation: Any) -> str:
    notes = getattr(annotation, "__metadata__", ())
    return next((str(note.description) for note in notes if getattr(note, "description", None)), "")
