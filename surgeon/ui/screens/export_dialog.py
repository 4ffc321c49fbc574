"""Asks where to export to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.widgets import Input, Static

from surgeon.errors import SurgeonError
from surgeon.session import Session
from surgeon.ui.screens.dialog import Dialog
from surgeon.ui.state.formatting import bytes_text, count_text
from surgeon.ui.widgets.checklist import Checklist


@dataclass(frozen=True)
class ExportOptions:
    """Where to export to, and whether to verify the result."""

    out: Path
    verify: bool


class ExportDialog(Dialog[ExportOptions]):
    """Shows what is exported and how much disk space it needs."""

    heading, key_hints = "export", "enter export · tab verify or not · esc leave"

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def compose_body(self) -> ComposeResult:
        """Yield the sizes and the inputs."""
        session, plan, styles = self._session, self._session.plan, self.theme_styles
        layers = sum(map(len, session.draft.stacks.values()))
        suggestion = f"{session.checkpoint.path.name}-{layers}-layers"
        dtypes = "/".join(sorted({tensor.dtype.lower() for tensor in plan.tensors}))
        sizes = f"{layers} layers · {count_text(plan.parameters)} params · {dtypes} · {bytes_text(plan.nbytes)}"
        base = f"{session.position} steps on {session.checkpoint.path}"
        yield Static(Text(sizes, styles.title))
        yield Static(Text(base, styles.dim, no_wrap=True, overflow="ellipsis"))
        yield Static("new directory", classes="label")
        yield Input(suggestion, id="out", compact=True)
        yield Static(id="disk")
        yield Checklist({"verify": Text("reload it and prove it equal to the model on the table")}, {"verify"})
        yield Static(id="validation")

    def on_mount(self) -> None:
        """Check the suggested directory."""
        self._check(self.query_one("#out", Input).value)

    @on(Input.Changed, "#out")
    def _changed(self, event: Input.Changed) -> None:
        self._check(event.value)

    def _check(self, text: str) -> bool:
        """Show the disk space at a directory; False where nothing can be exported there."""
        out = Path(text.strip() or ".").expanduser().absolute()
        if out.exists():
            self.show_error(
                SurgeonError("is there already", where=str(out), allowed="a directory that does not exist yet")
            )
            return False
        parent = next(parent for parent in out.parents if parent.is_dir())
        free, needed = shutil.disk_usage(parent).free, self._session.plan.nbytes
        enough = free > needed
        style = self.theme_styles.dim if enough else self.theme_styles.error + Style(bold=True)
        self.query_one("#disk", Static).update(
            Text(f"{bytes_text(free)} free there, {bytes_text(needed)} needed", style)
        )
        self.show_error(None if enough else SurgeonError("the disk has too little room", where=str(parent)))
        return enough

    @on(Checklist.Submitted)
    @on(Input.Submitted)
    def accept(self) -> None:
        """Accept the directory, if it can be exported to."""
        text = self.query_one("#out", Input).value
        if self._check(text):
            verify = "verify" in self.query_one(Checklist).checked
            self.dismiss(ExportOptions(Path(text.strip()).expanduser().absolute(), verify))
