"""The bar below the panes: the pending step, or the last message, or the layer under the cursor."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.style import Style
from rich.text import Text

from surgeon.core.selection.selection import spans
from surgeon.errors import SurgeonError
from surgeon.ui.state.formatting import count_text
from surgeon.ui.state.layer_rows import source_text
from surgeon.ui.state.pending_step import PendingStep
from surgeon.ui.state.step_text import removed_scores, step_effects
from surgeon.ui.widgets.base_bar import StatusBar, join_parts


class MessageBar(StatusBar):
    """At least two lines."""

    def render(self) -> Text:
        """Render the most urgent of the three."""
        if self.state.pending_step is not None:
            return self._pending_step(self.state.pending_step)
        if self.state.notice is not None:
            return Text(self.state.notice.text, self.theme_styles.severity(self.state.notice.severity))
        return self._layer()

    def _pending_step(self, step: PendingStep) -> Text:
        styles, error = self.theme_styles, step.error
        layers = spans(step.positions) if step.positions else ""
        text = Text()
        text.append(" DRAFT ", Style(bold=True, reverse=True) + (styles.error if error else styles.mark))
        text.append(f" {step.operation.replace('_', '-')} {layers}  ", styles.title)
        if error is not None:
            return text.append_text(self._error(error))
        if step.preview is None:
            return text.append("…\n", styles.dim)
        text.append_text(join_parts(step_effects(self.state.session, step), styles))
        removed = removed_scores(self.state.session, step, self.state.score_columns)
        if removed:
            text.append("\nmeasured  ", styles.dim)
            text.append_text(join_parts(removed, styles))
        return text.append_text(self._command(step.preview.command))

    def _command(self, command: str) -> Text:
        """Render the command that does the same: on a shell, or, behind other steps, on the `:` line."""
        styles, session = self.theme_styles, self.state.session
        if not session.position:
            return Text.assemble(("\n$ ", styles.accent), (command, styles.dim))
        words = command.removeprefix("surgeon ").replace(f" {shlex.quote(session.model)}", "", 1)
        whole = f"  step {session.position + 1}; w writes the whole recipe"
        return Text.assemble(("\n: ", styles.accent), (words, styles.dim), (whole, styles.faint))

    def _error(self, error: SurgeonError) -> Text:
        styles = self.theme_styles
        details = [f"allowed: {error.allowed}"] * bool(error.allowed) + [error.hint] * bool(error.hint)
        return Text.assemble((f"{error.what}\n", styles.error), (" · ".join(details) or error.where, styles.dim))

    def _layer(self) -> Text:
        row, styles = self.state.current_row, self.theme_styles
        if row.position is None:
            return Text(f"layer {row.key} · pruned by step {row.removed_by}\nu takes back the newest step", styles.dim)
        layer = row.layer
        settings = [f"{name} {value}" for name, value in layer.settings.items() if value is not None]
        parts = [f"layer {row.key}", f"{count_text(row.parameters)} params", *settings]
        if layer.inserted:
            parts.insert(1, source_text(layer.source))
        marked = len(self.state.marks | self.state.range_keys)
        text = Text(" · ".join(parts), styles.dim)
        text.append("\n")
        text.append(f"{marked} marked  " if marked else "", styles.mark)
        text.append(" · ".join(self._scores(row.key)), styles.dim)
        return text

    def _scores(self, key: str) -> Iterator[str]:
        for column in self.state.visible_columns:
            if key in column.values:
                error = f" ±{column.errors[key]:.1g}" if key in column.errors else ""
                yield f"{column.name} {column.values[key]:.4g}{error}{'~' if self.state.is_stale(column) else ''}"
