"""The table of layers, painted line by line: one score that arrives repaints only the lines that changed."""

from __future__ import annotations

from collections.abc import Iterator

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from surgeon.core.plan.draft import base_tensors
from surgeon.ui.state.formatting import bar, count_text, value_text
from surgeon.ui.state.layer_rows import Row
from surgeon.ui.state.score_columns import Column
from surgeon.ui.state.screen_state import Room
from surgeon.ui.theme import DARK_LOOKS, LIGHT_LOOKS, Looks
from surgeon.ui.widgets.table_shape import VALUE_CELLS, Shape, shape_at

_BUILD_MOST = 40
_BUILD = {"attention": ("━", "ice"), "mlp": ("─", "accent"), "experts": ("═", "violet"), "router": ("╍", "gold")}
_REST = ("╌", "dim")


class LayerTable(ScrollView, can_focus=True, inherit_bindings=False):
    """One line per layer. Shows what the room says; changes nothing but its own scrolling."""

    HELP = "The layers of the model, and the scores of each."

    class Clicked(Message):
        """A row was clicked, or the header of a score."""

        def __init__(self, place: int | None, column: int | None) -> None:
            super().__init__()
            self.place, self.column = place, column

    def __init__(self, room: Room) -> None:
        super().__init__(id="layers")
        self.room = room
        self._builds: dict[object, dict[str, int]] = {}
        self._shape: Shape | None = None
        self._ground = Style.null()

    @property
    def looks(self) -> Looks:
        """The styles of the theme in use."""
        return DARK_LOOKS if self.app.current_theme.dark else LIGHT_LOOKS

    # ── what changed ──

    def show_all(self) -> None:
        """Rows or columns have changed: measure and paint everything."""
        self._shape = None
        living = sum(row.position is not None for row in self.room.rows)
        several = len(self.room.session.structure.stacks) > 1
        self.border_title = f"{self.room.stack + ' · ' if several else ''}{living} layers"
        parts = [f"only {self.room.wanted}"] if self.room.wanted else []
        parts += [f"sorted by {self.room.sort[0]}"] if self.room.sort else []
        self.border_subtitle = " · ".join(parts)
        self.virtual_size = Size(0, len(self.room.order) + 1)
        self.keep_cursor_in_view()
        self.refresh()

    def show_rows(self, keys: set[str]) -> None:
        """Values of these layers have changed."""
        places = {self.room.rows[at].key: place for place, at in enumerate(self.room.order)}
        self.show_places({places[key] for key in keys if key in places})

    def show_places(self, places: set[int]) -> None:
        """Paint these lines again, where they are in view."""
        top, height, width = self.scroll_offset.y, self.size.height, self.size.width
        regions = [Region(0, place + 1 - top, width, 1) for place in places if 0 < place + 1 - top < height]
        if regions:
            self.refresh(*regions)

    def keep_cursor_in_view(self) -> None:
        """Scroll as little as brings the cursor into view."""
        visible = max(1, self.size.height - 1)
        top, cursor = self.scroll_offset.y, self.room.cursor
        wanted = cursor if cursor < top else max(top, cursor - visible + 1)
        if wanted != top:
            self.scroll_to(y=wanted, animate=False, force=True)

    @property
    def page(self) -> int:
        """Half of the rows in view."""
        return max(1, (self.size.height - 1) // 2)

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self.show_all()

    def on_click(self, event: events.Click) -> None:
        """Choose a row, or sort by a column."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y:
            place = offset.y - 1 + self.scroll_offset.y
            if place < len(self.room.order):
                self.post_message(self.Clicked(place, None))
            return
        shape = self.shape
        left = self.size.width - shape.score * shape.scores
        if shape.scores and offset.x >= left:
            self.post_message(self.Clicked(None, shape.first + (offset.x - left) // shape.score))

    # ── shape ──

    @property
    def shape(self) -> Shape:
        """The columns at the present width."""
        if self._shape is None:
            self._shape = shape_at(self.room, self.size.width)
        return self._shape

    # ── painting ──

    def render_lines(self, crop: Region) -> list[Strip]:
        """Work out the ground colour once for all lines of one painting; Textual would do it for each."""
        self._ground = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """Paint the line at `y` of what is in view."""
        width = self.size.width
        base = self._ground
        if y == 0:
            return self._strip(list(self._header()), base + self.looks.on_raised, width)
        place = y - 1 + self.scroll_offset.y
        if place >= len(self.room.order):
            return Strip.blank(width, base)
        row = self.room.rows[self.room.order[place]]
        under = base + self.looks.on_cursor if place == self.room.cursor else base
        return self._strip(list(self._row(row, place)), under, width)

    def _strip(self, segments: list[Segment], base: Style, width: int) -> Strip:
        painted = [Segment(text, base + style if style else base) for text, style, _ in segments]
        return Strip(painted).adjust_cell_length(width, base)

    def _header(self) -> Iterator[Segment]:
        looks, shape, columns = self.looks, self.shape, self.room.columns
        yield Segment("   ")
        yield Segment("#".rjust(shape.position - 1) + " ", looks.dim)
        if shape.key:
            yield Segment("layer".ljust(shape.key), looks.dim)
        yield Segment("params ", looks.dim)
        yield Segment("state".ljust(shape.state), looks.dim)
        yield from self._build_header(shape)
        for at in range(shape.first, shape.first + shape.scores):
            column = columns[at]
            sorted_by = self.room.sort is not None and self.room.sort[0] == column.name
            arrow = (" ▾" if self.room.sort and self.room.sort[1] else " ▴") if sorted_by else ""
            more = "  +" if at == shape.first + shape.scores - 1 < len(columns) - 1 else ""
            active = at == self.room.active and len(columns) > 1
            style = looks.key + Style(underline=active) if active or sorted_by else looks.title
            indent = max(1, VALUE_CELLS + 1 - len(column.title))
            rest = f"{arrow}{'  log' if column.scale.logarithmic else ''}{more}"
            width = max(0, shape.score - indent - len(column.title))
            yield Segment(" " * indent)
            yield Segment(column.title, style)
            yield Segment(rest[:width].ljust(width), looks.dim)

    def _build_header(self, shape: Shape) -> Iterator[Segment]:
        if not shape.build:
            return
        looks, used = self.looks, 1
        yield Segment(" ")
        if shape.score:
            yield Segment("build".ljust(shape.build - 1), looks.dim)
            return
        kinds = {kind for row in self.room.rows for kind in self._build_of(row)}
        for kind in sorted(kinds, key=lambda kind: (kind not in _BUILD, kind)):
            glyph, tint = _BUILD.get(kind, _REST)
            if kind not in _BUILD and kind != "norm":
                continue
            yield Segment(f"{glyph * 2} ", getattr(looks, tint))
            yield Segment(f"{kind}  ", looks.dim)
            used += len(kind) + 5
        hint = "S measures importance "
        gap = shape.build - used - len(hint)
        yield Segment(" " * max(0, gap) + (hint if gap >= 0 else ""), looks.accent)

    def _row(self, row: Row, place: int) -> Iterator[Segment]:
        looks, shape, room = self.looks, self.shape, self.room
        gone = row.position is None
        ranged = row.key in room.range_keys
        yield Segment("●" if row.key in room.marks else " ", looks.mark)
        yield Segment(
            "▶" if place == room.cursor else "│" if ranged else " ",
            looks.accent if place == room.cursor else looks.mark,
        )
        yield Segment(" ")
        position = "┄" if row.position is None else str(row.position)
        ink = looks.faint if gone else looks.title if place == room.cursor else looks.ink
        yield Segment(position.rjust(shape.position - 1) + " ", ink)
        if shape.key:
            yield from self._cell(
                row.key, shape.key, looks.struck if gone else looks.violet if row.layer.inserted else looks.dim
            )
        text = count_text(row.parameters)
        yield Segment(" " * (6 - len(text)))
        yield Segment(text, looks.struck if gone else looks.dim)
        yield Segment(" ")
        yield from self._states(row)
        if shape.build:
            yield from self._build(row, shape.build - 1)
        for column in room.columns[shape.first : shape.first + shape.scores]:
            yield from self._score(row, column)

    @staticmethod
    def _cell(text: str, width: int, style: Style) -> Iterator[Segment]:
        # The strike of a pruned layer must not run through the blanks.
        yield Segment(text[:width], style)
        yield Segment(" " * (width - len(text)))

    def _states(self, row: Row) -> Iterator[Segment]:
        left = self.shape.state
        for state in row.states:
            if left < len(state) + 1:
                break
            yield Segment(state, self.looks.state(state))
            yield Segment(" ")
            left -= len(state) + 1
        yield Segment(" " * left)

    def _build_of(self, row: Row) -> dict[str, int]:
        known = self._builds.get(row.layer.source)
        if known is None:
            structure = self.room.session.structure
            known = {}
            for suffix, tensor in base_tensors(row.layer.source, self.room.stack_here).items():
                kind = structure.role(suffix).partition(".")[0]
                known[kind] = known.get(kind, 0) + tensor.parameters
            self._builds[row.layer.source] = known
        return known

    def _build(self, row: Row, width: int) -> Iterator[Segment]:
        """How a layer's parameters are spread, drawn against the largest layer."""
        built, cells = self._build_of(row), 0
        gone = row.position is None
        whole = max(1, round(row.parameters / self.shape.largest * min(width - 1, _BUILD_MOST)))
        kinds = sorted(built, key=lambda kind: (kind not in _BUILD, kind))
        yield Segment(" ")
        for number, kind in enumerate(kinds):
            share = round(built[kind] / (row.parameters or 1) * whole)
            share = min(share, whole - cells) if number < len(kinds) - 1 or kind in _BUILD else whole - cells
            glyph, tint = _BUILD.get(kind, _REST)
            yield Segment(
                "┄" * share if gone else glyph * share, self.looks.faint if gone else getattr(self.looks, tint)
            )
            cells += share
        yield Segment(" " * max(0, width - cells))

    def _score(self, row: Row, column: Column) -> Iterator[Segment]:
        looks, width = self.looks, self.shape.score
        bars = width - VALUE_CELLS - 3
        key, stale = row.key, self.room.is_stale(column)
        if key in column.pending:
            yield Segment(f" {'···':>{VALUE_CELLS}}  {'···':<{bars}}"[:width], looks.faint)
        elif key in column.failed:
            yield Segment(f" {'!':>{VALUE_CELLS}}  ", looks.bad)
            yield Segment("failed"[:bars].ljust(bars), looks.bad)
        elif key not in column.values:
            yield Segment(f" {'—':>{VALUE_CELLS}}  {'':<{bars}}", looks.faint)
        else:
            value = column.values[key]
            step = looks.on_ramp(column.scale.rank(value))
            text = value_text(value, column.scale.decimals)
            faded = stale or row.position is None
            yield Segment(f" {text:>{VALUE_CELLS}}", looks.faint if faded else looks.ramp_ink[step])
            yield Segment("~ " if stale else "  ", looks.warning)
            yield Segment(bar(column.scale.length(value), bars), looks.track if faded else looks.ramp[step])
