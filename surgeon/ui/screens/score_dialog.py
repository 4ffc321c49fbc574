"""Which scores to measure, and on what."""

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
from surgeon.ui.screens.dialogs import Dialog
from surgeon.ui.widgets.checklist import Ticks

_FIRST = ("block_influence", "weight_norm")
"""What is ticked before anything has been measured: cheap, and known to most."""
_CHEAP_FIRST = ("weights", "activations", "inputs", "gradients", "sweep", "learning")


@dataclass(frozen=True)
class ScoreWish:
    """Which scores to measure, and on what. `data` None is the built-in text."""

    names: tuple[str, ...]
    data: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)


class ScoreDialog(Dialog[ScoreWish]):
    """Every score, the cheap ones first; what the current one asks is written below."""

    heading, foot = "measure", "space choose · tab next · enter measure · esc leave"

    def __init__(self, data: str | None, measured: set[str]) -> None:
        super().__init__()
        self._data = data
        self._kinds = dict(sorted(score_kinds().items(), key=lambda item: (_CHEAP_FIRST.index(item[1].needs), item[0])))
        self._ticked = (measured & self._kinds.keys()) or set(_FIRST) & self._kinds.keys()

    def body(self) -> ComposeResult:
        """Yield the scores and the data they are measured on."""
        yield Ticks({name: self._line(kind) for name, kind in self._kinds.items()}, self._ticked)
        yield Static(id="about")
        yield Static("text to measure on, .jsonl or .txt; empty is the built-in one", classes="label")
        yield Input(self._data or "", placeholder="python_docs", id="data", compact=True)
        with Horizontal(classes="pair"):
            yield Input(placeholder="sequences (default)", id="sequences", type="integer", compact=True)
            yield Input(placeholder="tokens in each (default)", id="length", type="integer", compact=True)
        yield Static(id="complaint")

    def _line(self, kind: type[ScoreKind]) -> Text:
        looks = self.looks
        return Text.assemble(
            (f"{kind.name:<20}", looks.accent), (f"{kind.title:<9}", looks.title), (reads(kind), looks.dim)
        )

    @on(Ticks.Moved)
    def _moved(self, event: Ticks.Moved) -> None:
        kind, looks = self._kinds[event.name], self.looks
        cost = f"{kind.cost}" if kind.cost else ""
        about = Text.assemble(
            (f"{kind.asks}?\n", looks.ink), (cost, looks.dim), (f"  {kind.paper}".rstrip(), looks.faint)
        )
        self.query_one("#about", Static).update(about)

    @on(Ticks.Submitted)
    @on(Input.Submitted)
    def accept(self) -> None:
        """Answer, if any score is ticked."""
        names = tuple(name for name in self._kinds if name in self._ticked)
        if not names:
            self.complain(SurgeonError("no score is chosen", hint="space chooses one"))
            return
        values = {name: self.query_one(f"#{name}", Input).value.strip() for name in ("data", "sequences", "length")}
        settings = {name: int(values[name]) for name in ("sequences", "length") if values[name].isdigit()}
        self.dismiss(ScoreWish(names, values["data"] or None, settings))
