"""The bar at the top: the model, its size before and after the applied steps, the recipe."""

from __future__ import annotations

from rich.text import Text

from surgeon.ui.state.formatting import bytes_text, count_text
from surgeon.ui.theme import ThemeStyles
from surgeon.ui.widgets.base_bar import StatusBar


class HeaderBar(StatusBar):
    """One line."""

    def render(self) -> Text:
        """Render the model on the left as far as it fits, the recipe on the right."""
        session, styles = self.state.session, self.theme_styles
        plan, base = session.plan, session.checkpoint
        right, width = self._recipe(), self.size.width
        parts = [
            Text(session.checkpoint.path.name or session.model, styles.title),
            _change(count_text(base.parameters), count_text(plan.parameters), styles),
            _change(bytes_text(base.nbytes), bytes_text(plan.nbytes), styles),
            Text(session.structure.model_type, styles.dim),
        ]
        # What must be seen on a narrow screen too stands before the sizes.
        quantisation = session.structure.quantisation
        if quantisation is not None:
            parts.insert(1, Text(f"quantised: {quantisation.method}", styles.warning))
        if self.state.base_fault:
            parts.insert(1, Text("! cannot be loaded", styles.error))
        elif notes := len(self.state.base_notes):
            parts.append(Text(f"{notes} note{'' if notes == 1 else 's'} on its files", styles.warning))
        left = Text(no_wrap=True).append(" surgeon ", styles.badge)
        for part in parts:
            if left.cell_len + 2 + part.cell_len + 1 + right.cell_len > width:
                continue
            left.append("  ")
            left.append_text(part)
        left.append(" " * max(1, width - left.cell_len - right.cell_len))
        left.append_text(right)
        return left

    def _recipe(self) -> Text:
        session, styles = self.state.session, self.theme_styles
        name = session.recipe_path.name if session.recipe_path else "no recipe yet"
        count = len(session.steps)
        steps = f"{session.position}/{count}" if session.position < count else str(session.position)
        text = Text(no_wrap=True)
        text.append(name, styles.foreground if session.recipe_path else styles.dim)
        text.append("*" if session.unsaved else "", styles.warning)
        text.append(f"  {steps} step{'' if count == 1 else 's'} ", styles.dim)
        return text


def _change(before: str, after: str, styles: ThemeStyles) -> Text:
    if before == after:
        return Text(before, styles.foreground)
    number, _, unit = before.partition(" ")
    shown = number if unit and after.endswith(unit) else before
    return Text.assemble((shown, styles.dim), ("→", styles.faint), (after, styles.accent))
