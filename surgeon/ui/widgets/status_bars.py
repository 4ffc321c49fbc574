"""The one-line strips: header, message and proposal, job, keys. Each paints what the room and the desk say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip
from textual.widget import Widget

from surgeon.core.selection.selection import spans
from surgeon.ui.commands import Command
from surgeon.ui.state.formatting import bar as bar_text
from surgeon.ui.state.formatting import bytes_text, count_text, seconds_text
from surgeon.ui.state.job_runner import Desk, Running
from surgeon.ui.state.layer_rows import source_text
from surgeon.ui.state.pending_step import consequences, lost_importance
from surgeon.ui.state.screen_state import Room
from surgeon.ui.state.training_progress import Lesson, curve
from surgeon.ui.theme import DARK_LOOKS, LIGHT_LOOKS, Looks

_BAR_CELLS = 20
_CURVE_CELLS = 40
_ROOMY = 100
_CORNER = range(60, 65)


class TextStrip(Widget):
    """A widget that is a few lines of text."""

    def __init__(self, room: Room, *, id: str) -> None:
        super().__init__(id=id)
        self.room = room

    @property
    def looks(self) -> Looks:
        """The styles of the theme in use."""
        return DARK_LOOKS if self.app.current_theme.dark else LIGHT_LOOKS


def joined(parts: Sequence[str], looks: Looks) -> Text:
    """Put facts in a row."""
    return Text(" · ", looks.faint).join([Text(part, looks.ink) for part in parts])


class HeaderStrip(TextStrip):
    """What lies on the table: model, size before and after, recipe."""

    def render(self) -> Text:
        """Write the name on the left, the recipe on the right."""
        session, looks = self.room.session, self.looks
        plan, base = session.plan, session.checkpoint
        right, room = self._recipe(), self.size.width
        facts = [
            Text(session.checkpoint.path.name or session.model, looks.title),
            _before_and_after(count_text(base.parameters), count_text(plan.parameters), looks),
            _before_and_after(bytes_text(base.nbytes), bytes_text(plan.nbytes), looks),
            Text(session.structure.model_type, looks.dim),
        ]
        left = Text(no_wrap=True).append(" surgeon ", looks.badge)
        for fact in facts:
            if left.cell_len + 2 + fact.cell_len + 1 + right.cell_len > room:
                break
            left.append("  ")
            left.append_text(fact)
        left.append(" " * max(1, self.size.width - left.cell_len - right.cell_len))
        left.append_text(right)
        return left

    def _recipe(self) -> Text:
        session, looks = self.room.session, self.looks
        name = session.recipe_path.name if session.recipe_path else "no recipe yet"
        steps = (
            f"{session.position}/{len(session.steps)}"
            if session.position < len(session.steps)
            else str(session.position)
        )
        text = Text(no_wrap=True)
        text.append(name, looks.ink if session.recipe_path else looks.dim)
        text.append("*" if session.unsaved else "", looks.warning)
        text.append(f"  {steps} step{'' if len(session.steps) == 1 else 's'} ", looks.dim)
        return text


def _before_and_after(before: str, after: str, looks: Looks) -> Text:
    if before == after:
        return Text(before, looks.ink)
    number, _, unit = before.partition(" ")
    shown = number if unit and after.endswith(unit) else before
    return Text.assemble((shown, looks.dim), ("→", looks.faint), (after, looks.accent))


class MessageStrip(TextStrip):
    """The proposal with what it would do and its command line; or the last message; or the layer under the cursor."""

    def render(self) -> Text:
        """Write at least two lines."""
        if self.room.proposal is not None:
            return self._proposal()
        if self.room.notice is not None:
            text, tone = self.room.notice.text, self.room.notice.tone
            return Text(text, self.looks.tone(tone))
        return self._layer()

    def _proposal(self) -> Text:
        looks, proposal = self.looks, self.room.proposal
        assert proposal is not None
        error = proposal.error
        where = spans(proposal.positions) if proposal.positions else ""
        text = Text()
        text.append(" DRAFT ", Style(bold=True, reverse=True) + (looks.bad if error else looks.mark))
        text.append(f" {proposal.operation.replace('_', '-')} {where}  ", looks.title)
        if error is not None:
            text.append(f"{error.what}\n", looks.bad)
            details = [f"allowed: {error.allowed}"] * bool(error.allowed) + [error.hint] * bool(error.hint)
            text.append(" · ".join(details) or error.where, looks.dim)
            return text
        if proposal.preview is None:
            return text.append("…\n", looks.dim)
        text.append_text(joined(consequences(self.room.session, proposal), looks))
        lost = lost_importance(self.room.session, proposal, self.room.board)
        if lost:
            text.append("\nmeasured  ", looks.dim)
            text.append_text(joined(lost, looks))
        text.append("\n$ ", looks.accent)
        text.append(proposal.preview.command, looks.dim)
        return text

    def _layer(self) -> Text:
        row, looks = self.room.row, self.looks
        if row.position is None:
            return Text(f"layer {row.key} · pruned by step {row.removed_by}\nu takes back the newest step", looks.dim)
        layer = row.layer
        says = [f"{name} {value}" for name, value in layer.settings.items() if value is not None]
        parts = [f"layer {row.key}", f"{count_text(row.parameters)} params", *says]
        if layer.inserted:
            parts.insert(1, source_text(layer.source))
        marked = len(self.room.marks | self.room.range_keys)
        text = Text(" · ".join(parts), looks.dim)
        text.append("\n")
        text.append(f"{marked} marked  " if marked else "", looks.mark)
        text.append(" · ".join(self._scores(row.key)), looks.dim)
        return text

    def _scores(self, key: str) -> Iterator[str]:
        for column in self.room.columns:
            if key in column.values:
                error = f" ±{column.errors[key]:.1g}" if key in column.errors else ""
                yield f"{column.name} {column.values[key]:.4g}{error}{'~' if self.room.is_stale(column) else ''}"


class JobStrip(TextStrip):
    """The job under way, or the worker's end, or nothing."""

    def __init__(self, room: Room, desk: Desk, *, id: str) -> None:
        super().__init__(room, id=id)
        self.desk = desk

    def render(self) -> Text:
        """Write one line."""
        looks, running = self.looks, self.desk.running
        if running is not None and running.lesson is not None:
            return self._lesson(running, running.lesson)
        if self.desk.crash is not None and running is None:
            text = Text(
                f" {self.desk.crash} · S measures again · r restarts it ",
                looks.banner,
                no_wrap=True,
                overflow="ellipsis",
            )
            text.pad_right(max(0, self.size.width - text.cell_len))
            return text
        if running is None:
            return self._idle()
        text = Text(" ", no_wrap=True, overflow="ellipsis")
        text.append(running.title, looks.title)
        if running.total:
            done, total = (
                bytes_text(n) if running.unit == "bytes" else f"{n:g}" for n in (running.done, running.total)
            )
            text.append(f" {done}/{total} ", looks.ink)
            text.append(
                bar_text(running.done / running.total, _BAR_CELLS), looks.accent + Style(bgcolor=looks.palette.track)
            )
            left = None if running.cancelling else running.seconds_left
            text.append(f" {seconds_text(left)} left" if left is not None else "", looks.dim)
        else:
            text.append(f" {running.what or 'starting the worker'} {seconds_text(running.elapsed)}", looks.dim)
        text.append(" · " if running.cancelling else " · x cancels", looks.dim)
        if running.cancelling:
            text.append("cancelling, x again ends the worker", looks.warning)
        if running.total and running.what:
            text.append(f" · {running.what}", looks.faint)
        return text

    def show(self) -> None:
        """Paint again; what is trained takes two lines."""
        running = self.desk.running
        self.set_class(running is not None and running.lesson is not None, "-learning")
        self.refresh()

    def _lesson(self, running: Running, lesson: Lesson) -> Text:
        """Write how far it is, how fast, and what is watched."""
        looks, done, total = self.looks, int(lesson.newest["done"]), int(lesson.newest["total"])
        text = Text(" ", no_wrap=True, overflow="ellipsis")
        text.append(running.title, looks.title)
        text.append(f" {done}/{total} ", looks.ink)
        text.append(bar_text(done / total, _BAR_CELLS), looks.accent + Style(bgcolor=looks.palette.track))
        text.append(
            f" {count_text(lesson.tokens_per_second)} tokens/s · {seconds_text(lesson.seconds_left)} left", looks.dim
        )
        if running.cancelling:
            text.append(" · stopping, x again ends the worker", looks.warning)
        else:
            text.append(" · x stops", looks.dim)
        text.append(f" · {running.what}" if running.what != "training" else "", looks.faint)
        text.append("\n ")
        text.append(curve(lesson.losses, min(_CURVE_CELLS, self.size.width // 4)), looks.accent)
        text.append(" ")
        return text.append_text(joined(lesson.says, looks))

    def _idle(self) -> Text:
        looks = self.looks
        if self.desk.client.alive:
            memory = f" · {bytes_text(self.desk.resident_bytes)}" if self.desk.resident_bytes else ""
            return Text(f" worker ready{memory}", looks.faint)
        return Text(" worker not started: it starts with the first measurement", looks.faint)


class KeyStrip(TextStrip):
    """What can be pressed now. Generated from the command table; a click does what the key does."""

    def __init__(self, room: Room, commands: Sequence[Command], *, id: str) -> None:
        super().__init__(room, id=id)
        self.commands = commands

    def render_line(self, y: int) -> Strip:
        """Paint the keys. Not through `render`: Textual would draw what can be clicked as a link."""
        del y
        base = self.rich_style
        segments = [
            Segment(text, base + style if style else base)
            for text, style, _ in self._keys().render(self.app.console, end="")
        ]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def _keys(self) -> Text:
        """Write as many keys as fit, dim where they do nothing now; help stays in its corner."""
        mode = "draft" if self.room.proposal is not None else "room"
        shown = sorted(
            (each for each in self.commands if each.footer and mode in each.modes), key=lambda each: each.rank
        )
        gap = "  " if self.size.width >= _ROOMY else " "
        corner = Text(gap).join([self._key(command) for command in shown if command.rank in _CORNER])
        text = Text(no_wrap=True)
        for command in (each for each in shown if each.rank not in _CORNER):
            key = self._key(command)
            if text.cell_len + len(gap) + key.cell_len + len(gap) + corner.cell_len + 1 > self.size.width:
                break
            text.append(gap if text.cell_len else " ").append_text(key)
        text.append(" " * (self.size.width - text.cell_len - corner.cell_len - 1))
        return text.append_text(corner)

    def _key(self, command: Command) -> Text:
        off = command.reason(self.room) is not None
        meta = Style(meta={"@click": f"screen.command('{command.id}')"})
        return Text.assemble(
            (command.key_text, (self.looks.faint if off else self.looks.key) + meta),
            (f" {command.footer}", (self.looks.faint if off else self.looks.dim) + meta),
        )
