"""The recipe's steps as a list."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from surgeon.ui.state.formatting import count_change
from surgeon.ui.state.parameter_counts import draft_parameters
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.state.step_results import result_text
from surgeon.ui.theme import theme_styles
from surgeon.ui.widgets.text_list import TextList


class RecipePane(TextList):
    """The steps: ✓ applied, … not measured yet, ✗ a gate that is not met, ○ undone."""

    HELP = "The steps of the recipe. Enter shows the step under the cursor, and what can be done with it."

    def __init__(self, state: ScreenState) -> None:
        super().__init__(id="recipe")
        self.state = state
        self.cursor = 0

    def reload(self) -> None:
        """Read the steps from the session again."""
        session, styles = self.state.session, theme_styles(self.app)
        model = session.checkpoint.path.name or session.model
        lines = [Text.assemble(("  0 ", styles.faint), ("● ", styles.accent), (model, styles.dim))]
        for number, step in enumerate(session.steps, start=1):
            lines.append(self._step(number, self.state.step_titles[number - 1], step.resolved))
        if not session.steps:
            lines.append(Text("    no steps yet", styles.faint))
        path = session.recipe_path
        self.border_title = f"recipe {path.name if path else ''}{'*' if session.unsaved else ''}".strip()
        self.border_subtitle = "u undo · ctrl+r redo" if session.steps else ""
        self.set_lines(lines)
        self.cursor = min(self.cursor or 0, len(session.steps))

    def move_to_newest(self) -> None:
        """Put the cursor on the newest applied step."""
        self.cursor = self.state.session.position
        self.move(0)

    def _step(self, number: int, title: str, resolved: Mapping[str, tuple[int | str, ...]] | None) -> Text:
        styles, session = theme_styles(self.app), self.state.session
        applied, newest = number <= session.position, number == session.position
        line = Text(no_wrap=True)
        line.append(f"{number:>3} ", styles.faint)
        line.append_text(self._mark(number, applied))
        line.append(title, (styles.title if newest else styles.foreground) if applied else styles.faint)
        if resolved:
            selected = ",".join(map(str, next(iter(resolved.values()))))
            line.append(f" = {selected}", styles.dim if applied else styles.faint)
        if applied:
            before, after = (draft_parameters(session.draft_at(position)) for position in (number - 1, number))
            line.append(f"  {count_change(after - before)}" if after != before else "", styles.dim)
            line.append_text(self._figures(number))
        else:
            line.append("  undone", styles.faint)
        return line

    def _mark(self, number: int, applied: bool) -> Text:
        styles = theme_styles(self.app)
        if not applied:
            return Text("○ ", styles.faint)
        if number - 1 in self.state.unmeasured_steps:
            return Text("… ", styles.warning)
        unmet = any(result.unmet for result in self.state.results.of(self.state.session.steps, number - 1))
        return Text("✗ ", styles.error) if unmet else Text("✓ ", styles.success)

    def _figures(self, number: int) -> Text:
        styles = theme_styles(self.app)
        if number - 1 in self.state.unmeasured_steps:
            return Text("  not measured: y measures it", styles.warning)
        results = self.state.results.of(self.state.session.steps, number - 1)
        return Text("".join(f"  {result_text(result)}" for result in results), styles.accent)
