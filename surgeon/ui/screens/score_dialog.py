"""Asks which scores to measure, and on what data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Input, Static

from surgeon.core.scoring.score_kinds import ScoreKind, reads, score_kinds
from surgeon.errors import SurgeonError
from surgeon.ui.screens.dialog import Dialog
from surgeon.ui.widgets.checklist import Checklist

_DEFAULT_SCORES = ("block_influence", "weight_norm")
"""What is checked before anything has been measured: cheap and widely known."""
_LEAST_LINES, _OTHER_LINES = 9, 17
"""Of the list, and of everything around it."""
_CHEAPEST_FIRST = ("weights", "activations", "inputs", "parts", "gradients", "sweep", "adapters", "learning")


@dataclass(frozen=True)
class ScoreOptions:
    """Which scores to measure, and on what. `data` None is the built-in text."""

    names: tuple[str, ...]
    data: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)


class ScoreDialog(Dialog[ScoreOptions]):
    """Every score, the cheapest first; the current one is described below the list."""

    heading, key_hints = "measure", "space choose · tab next · enter measure · esc leave"

    def __init__(self, data: str | None, measured: set[str], last: ScoreOptions | None = None) -> None:
        super().__init__()
        self._data = data if last is None else last.data
        self._settings = {} if last is None else last.settings
        measured = measured if last is None else set(last.names)
        kinds = score_kinds().items()
        self._kinds = dict(sorted(kinds, key=lambda item: (_CHEAPEST_FIRST.index(item[1].needs), item[0])))
        self._checked = (measured & self._kinds.keys()) or set(_DEFAULT_SCORES) & self._kinds.keys()

    def compose_body(self) -> ComposeResult:
        """Yield the scores and the data they are measured on."""
        lines = max(_LEAST_LINES, self.app.size.height - _OTHER_LINES)
        labels = {name: self._label(kind) for name, kind in self._kinds.items()}
        yield Checklist(labels, self._checked, most_lines=lines)
        yield Static(id="description")
        yield Static(
            "data to measure on: a file, or OWNER/NAME on the hub; empty is the built-in text", classes="label"
        )
        yield Input(self._data or "", placeholder="python_docs", id="data", compact=True)
        with Horizontal(classes="input-row"):
            yield self._number("sequences", "sequences (12)")
            yield self._number("length", "tokens in each (256)")
        yield Static(id="validation")

    def _number(self, name: str, placeholder: str) -> Input:
        value = str(self._settings.get(name, ""))
        return Input(value, placeholder=placeholder, id=name, type="integer", compact=True)

    def _label(self, kind: type[ScoreKind]) -> Text:
        styles = self.theme_styles
        return Text.assemble(
            (f"{kind.name:<20}", styles.accent), (f"{kind.title:<9}", styles.title), (reads(kind), styles.dim)
        )

    @on(Checklist.Moved)
    def _moved(self, event: Checklist.Moved) -> None:
        kind, styles = self._kinds[event.name], self.theme_styles
        cost = f"{kind.cost}" if kind.cost else ""
        description = Text.assemble(
            (f"{kind.asks}?\n", styles.foreground), (cost, styles.dim), (f"  {kind.paper}".rstrip(), styles.faint)
        )
        self.query_one("#description", Static).update(description)

    @on(Checklist.Submitted)
    @on(Input.Submitted)
    def accept(self) -> None:
        """Accept, if any score is checked."""
        names = tuple(name for name in self._kinds if name in self._checked)
        if not names:
            self.show_error(SurgeonError("no score is chosen", hint="space chooses one"))
            return
        values = {name: self.query_one(f"#{name}", Input).value.strip() for name in ("data", "sequences", "length")}
        settings = {name: int(values[name]) for name in ("sequences", "length") if values[name].isdigit()}
        self.dismiss(ScoreOptions(names, values["data"] or None, settings))
