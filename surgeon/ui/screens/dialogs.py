"""Questions: which file, where to export, whether to quit; and the whole of an error."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from surgeon.errors import SurgeonError
from surgeon.session import Session
from surgeon.ui.state.formatting import bytes_text, count_text
from surgeon.ui.theme import DARK_LOOKS, LIGHT_LOOKS, Looks
from surgeon.ui.widgets.checklist import Ticks

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ExportWish:
    """Where to export to."""

    out: Path
    verify: bool


class Dialog(ModalScreen[Answer]):
    """A box in the middle of the screen; esc leaves it without an answer."""

    BINDINGS = [("escape", "dismiss(None)", "leave")]  # noqa: RUF012 - Textual declares it so
    heading = ""
    foot = "enter accept · esc leave"

    def compose(self) -> ComposeResult:
        """Lay out the box."""
        with Vertical(classes="box") as box:
            box.border_title, box.border_subtitle = self.heading, self.foot
            yield from self.body()

    def body(self) -> ComposeResult:
        """Yield what is in the box."""
        raise NotImplementedError

    @property
    def looks(self) -> Looks:
        """The styles of the theme in use."""
        return DARK_LOOKS if self.app.current_theme.dark else LIGHT_LOOKS

    def complain(self, error: SurgeonError | None) -> None:
        """Show what is wrong with the answer, or that nothing is."""
        self.query_one("#complaint", Static).update(Text(str(error) if error else "", self.looks.bad))


class SaveDialog(Dialog[str]):
    """A file name for the recipe."""

    heading = "write the recipe"

    def __init__(self, proposed: str) -> None:
        super().__init__()
        self._proposed = proposed

    def body(self) -> ComposeResult:
        """Yield the name."""
        yield Static("file name", classes="label")
        yield Input(self._proposed, id="path", compact=True)
        yield Static(id="complaint")

    @on(Input.Submitted)
    def accept(self, event: Input.Submitted) -> None:
        """Answer, if the name is free."""
        path = Path(event.value).expanduser()
        if path.exists():
            self.complain(SurgeonError("is there already", where=str(path), hint="take another name"))
        elif event.value.strip():
            self.dismiss(event.value.strip())


class ExportDialog(Dialog[ExportWish]):
    """Where to export to; says what it will be, and what is free there."""

    heading, foot = "export", "enter export · tab verify or not · esc leave"

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def body(self) -> ComposeResult:
        """Yield the facts and the target."""
        session, plan, looks = self._session, self._session.plan, self.looks
        layers = sum(map(len, session.draft.stacks.values()))
        proposed = f"{session.checkpoint.path.name}-{layers}-layers"
        dtypes = "/".join(sorted({tensor.dtype.lower() for tensor in plan.tensors}))
        facts = f"{layers} layers · {count_text(plan.parameters)} params · {dtypes} · {bytes_text(plan.nbytes)}"
        yield Static(Text(facts, looks.title))
        yield Static(
            Text(f"{session.position} steps on {session.checkpoint.path}", looks.dim, no_wrap=True, overflow="ellipsis")
        )
        yield Static("new directory", classes="label")
        yield Input(proposed, id="out", compact=True)
        yield Static(id="disk")
        yield Ticks({"verify": Text("reload it and prove it equal to the model on the table")}, {"verify"})
        yield Static(id="complaint")

    def on_mount(self) -> None:
        """Look at the disk."""
        self._look(self.query_one("#out", Input).value)

    @on(Input.Changed, "#out")
    def _changed(self, event: Input.Changed) -> None:
        self._look(event.value)

    def _look(self, text: str) -> bool:
        out = Path(text.strip() or ".").expanduser().absolute()
        if out.exists():
            self.complain(
                SurgeonError("is there already", where=str(out), allowed="a directory that does not exist yet")
            )
            return False
        parent = next(parent for parent in out.parents if parent.is_dir())
        free, needed = shutil.disk_usage(parent).free, self._session.plan.nbytes
        enough = free > needed
        style = self.looks.dim if enough else self.looks.bad + Style(bold=True)
        self.query_one("#disk", Static).update(
            Text(f"{bytes_text(free)} free there, {bytes_text(needed)} needed", style)
        )
        self.complain(None if enough else SurgeonError("the disk has too little room", where=str(parent)))
        return enough

    @on(Ticks.Submitted)
    @on(Input.Submitted)
    def accept(self) -> None:
        """Answer, if the target can be written."""
        text = self.query_one("#out", Input).value
        if self._look(text):
            verify = "verify" in self.query_one(Ticks).ticked
            self.dismiss(ExportWish(Path(text.strip()).expanduser().absolute(), verify))


class QuitDialog(Dialog[str]):
    """What to do with steps that the recipe does not hold yet."""

    heading, foot = "quit", "esc stay"
    BINDINGS = [  # noqa: RUF012 - Textual declares it so
        ("w", "dismiss('write')", "write"),
        ("k", "dismiss('keep')", "keep"),
        ("d", "dismiss('discard')", "discard"),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def body(self) -> ComposeResult:
        """Yield the three ways."""
        looks = self.looks
        yield Static(Text("The recipe on disk does not hold what is on the table.", looks.title))
        for key, what in (
            ("w", f"write it to {self._session.recipe_path or 'a file'} and quit"),
            ("k", "keep the steps: the next start recovers them"),
            ("d", "discard them"),
        ):
            yield Static(Text.assemble((f" {key} ", looks.key), (what, looks.ink)))


class ErrorDialog(Dialog[None]):
    """The whole of an error: where, what, what is allowed, what next."""

    foot = "esc or enter close"
    BINDINGS = [("enter", "dismiss(None)", "close")]  # noqa: RUF012 - Textual declares it so

    def __init__(self, title: str, error: SurgeonError) -> None:
        super().__init__()
        self.heading, self._error = f"{title}: failed", error

    def body(self) -> ComposeResult:
        """Yield its parts."""
        looks, error = self.looks, self._error
        yield Static(Text(error.what, looks.bad + Style(bold=True)))
        for name, part in (("where", error.where), ("allowed", error.allowed), ("next", error.hint)):
            if part:
                yield Static(Text.assemble((f"{name:<8}", looks.dim), (part, looks.ink)))
        yield Static(Text("Nothing is lost: the recipe is as it was.", looks.dim))
