"""One step of the recipe, to read; keys edit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from rich.text import Text

from surgeon.core.recipe.command_text import option_text
from surgeon.core.recipe.recipe import step_to_builtins
from surgeon.core.recipe.resolution import resolved_text
from surgeon.ui.screens.text_screen import TextScreen
from surgeon.ui.state.formatting import count_change
from surgeon.ui.state.parameter_counts import draft_parameters
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.state.step_results import result_text
from surgeon.ui.theme import ThemeStyles

StepEdit = Literal["go_to", "delete", "duplicate", "up", "down"]

_KEYS = (
    ("u", "go_to", "undo or redo up to here"), ("D", "delete", "delete it"), ("d", "duplicate", "once more"),
    ("K", "up", "move it up"), ("J", "down", "move it down"),
)  # fmt: skip


class StepScreen(TextScreen):
    """The fields of a step, what they came to, what it changed and what it found. `on_edit` takes a key's edit."""

    BINDINGS = [(key, f"edit('{edit}')", title) for key, edit, title in _KEYS]  # noqa: RUF012

    def __init__(self, state: ScreenState, number: int, on_edit: Callable[[StepEdit], None]) -> None:
        super().__init__()
        self._state, self._number, self._on_edit = state, number, on_edit
        self.heading = f"step {number + 1}: {state.step_titles[number]}"

    def lines(self, styles: ThemeStyles) -> Iterator[Text]:
        """Yield the fields, the results, then the keys."""
        session, number = self._state.session, self._number
        step = session.steps[number]
        plain = step_to_builtins(msgspec.structs.replace(step, resolved=None, resolved_for=None))[step.operation.name]
        for name, value in plain.items():
            yield Text.assemble((f" {name:<16} ", styles.dim), (option_text(value), styles.foreground))
        if step.resolved:
            yield Text.assemble((f" {'came to':<16} ", styles.dim), (resolved_text(step), styles.accent))
        if number < session.position:
            before, after = session.draft_at(number), session.draft_at(number + 1)
            layers = [sum(map(len, draft.stacks.values())) for draft in (before, after)]
            change = draft_parameters(after) - draft_parameters(before)
            text = f"{layers[0]}→{layers[1]} layers · {count_change(change)} params" if change else "changes no size"
            yield Text.assemble((f" {'effect':<16} ", styles.dim), (text, styles.foreground))
            for result in self._state.results.of(session.steps, number):
                yield Text.assemble((f" {'found':<16} ", styles.dim), (result_text(result), styles.accent))
        else:
            yield Text(" undone", styles.faint)
        yield Text()
        for key, _, title in _KEYS:
            yield Text.assemble((f" {key} ", styles.key), (title, styles.dim))

    def action_edit(self, edit: StepEdit) -> None:
        """Leave, and carry out an edit."""
        self.dismiss(None)
        self._on_edit(edit)
