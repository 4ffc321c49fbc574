"""The layer under the cursor in detail, as a list of lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.style import Style
from rich.text import Text

from surgeon.core.checkpoint.tensors import TensorType
from surgeon.core.plan.draft import Layer
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import OTHER
from surgeon.ui.state.formatting import bar_text, bytes_text, count_text
from surgeon.ui.state.layer_rows import source_text
from surgeon.ui.state.score_columns import ScoreColumn
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.theme import ThemeStyles, theme_styles
from surgeon.ui.widgets.text_list import TextList

_EXPERT_INDEX = re.compile(r"(?<=experts\.)\d+(?=\.)")
_BAR_CELLS = 12
_MAX_NAME_CELLS = 26
_UNTRAINED = "·"


class DetailPane(TextList):
    """A layer's settings, its scores and its tensors."""

    HELP = "The layer under the cursor: its settings, its scores and its tensors."

    def __init__(self, state: ScreenState) -> None:
        super().__init__(id="detail")
        self.state = state

    @property
    def _theme_styles(self) -> ThemeStyles:
        return theme_styles(self.app)

    def reload(self) -> None:
        """Read the layer from the state again."""
        row = self.state.current_row
        where = "pruned" if row.position is None else f"position {row.position}"
        self.border_title = f"layer {row.key}" + ("" if row.key == str(row.position) else f" · {where}")
        self.set_lines([*self._settings(row.layer), *self._scores(row.key), *self._tensors(row.layer, row.key)])

    def _setting(self, name: str, value: str, style: Style | None = None) -> Text:
        styles = self._theme_styles
        return Text.assemble((f" {name:<11}", styles.dim), (value, style or styles.foreground), no_wrap=True)

    def _settings(self, layer: Layer) -> Iterator[Text]:
        styles = self._theme_styles
        layout = self._layout(layer)
        size = f"{count_text(layout.parameters)} params · {bytes_text(layout.nbytes)} · {len(layout.types)} tensors"
        yield self._setting("size", size)
        yield self._setting("weights", source_text(layer.source), styles.violet if layer.inserted else None)
        for name, value in layer.settings.items():
            if value is not None:
                yield self._setting(name, str(value))
        if layer.frozen:
            yield self._setting("frozen", ", ".join(sorted(layer.frozen)), styles.blue)
        if layer.lora:
            lora = next(iter(layer.lora.values()))
            roles = ", ".join(sorted(layer.lora))
            yield self._setting("adapter", f"rank {lora.rank} alpha {lora.alpha:g} on {roles}", styles.yellow)
        yield Text()

    def _scores(self, key: str) -> Iterator[Text]:
        columns = [column for column in self.state.visible_columns if key in column.values]
        for column in columns:
            yield self._score(column, key)
            for note in column.notes:
                yield Text(f"   {note}", self._theme_styles.warning, no_wrap=True)
        if columns:
            yield Text()

    def _score(self, column: ScoreColumn, key: str) -> Text:
        styles, value = self._theme_styles, column.values[key]
        step = styles.ramp_step(column.scale.rank(value))
        stale = self.state.is_stale(column)
        error = f" ±{column.errors[key]:.1g}" if key in column.errors else ""
        order = sorted(column.values, key=lambda other: column.values[other])
        line = Text(no_wrap=True)
        line.append(f" {column.title:<10} ", styles.title)
        line.append(f"{value:.4g}", styles.faint if stale else styles.ramp_text[step])
        line.append(error, styles.dim)
        line.append(" " * max(1, 16 - len(f"{value:.4g}{error}")))
        bar_style = styles.faint_bar if stale else styles.ramp_bars[step]
        line.append(bar_text(column.scale.length(value), _BAR_CELLS), bar_style)
        line.append(f" {order.index(key) + 1}/{len(order)}", styles.dim)
        line.append("~" if stale else "", styles.warning)
        return line

    def _tensors(self, layer: Layer, key: str) -> Iterator[Text]:
        styles = self._theme_styles
        columns = [column for column in self.state.visible_columns if key in column.matrices]
        types = self._layout(layer).types
        groups = group_experts(types)
        width = min(_MAX_NAME_CELLS, max((len(_short_name(name)) for name in groups), default=0))
        titles = "".join(f" {column.title:>8}" for column in columns)
        grouped = {name: {suffix: types[suffix] for suffix in suffixes} for name, suffixes in groups.items()}
        shapes = max([9, *(len(_shape_text([*one.values()])) for one in grouped.values())]) + 1
        heading = f" {'tensor':<{width}} {'shape':<{shapes}}{titles}{'bytes':>9}  dtype role"
        yield Text(heading, styles.dim, no_wrap=True)
        for name, one in grouped.items():
            yield self._tensor(layer, key, name, one, columns, (width, shapes))
        if any(layer_key == key for column in columns for layer_key, _ in column.untrained):
            yield Text(f" {_UNTRAINED} was not trained", styles.dim, no_wrap=True)

    def _tensor(
        self, layer: Layer, key: str, name: str, types: Mapping[str, TensorType], columns: Sequence[ScoreColumn],
        widths: tuple[int, int],
    ) -> Text:  # fmt: skip
        styles, (suffix, one), (width, shapes) = self._theme_styles, next(iter(types.items())), widths
        line = Text(no_wrap=True)
        line.append(f" {_truncated(_short_name(name), width):<{width}} ", styles.foreground)
        line.append(f"{_shape_text([*types.values()]):<{shapes}}", styles.accent)
        for column in columns:
            value, untrained = column.matrices[key].get(suffix), (key, suffix) in column.untrained
            cell = _UNTRAINED if untrained else f"{value:.4g}" if value is not None else ""
            line.append(f" {cell:>8}", styles.foreground)
        line.append(f"{bytes_text(sum(each.nbytes for each in types.values())):>9}", styles.dim)
        role = self.state.session.structure.role(suffix)
        style = styles.blue if role in layer.frozen else styles.yellow if role in layer.lora else styles.faint
        line.append(f"  {one.dtype.lower():<5}", styles.dim)
        line.append(f" {'' if role == OTHER else role}", style)
        return line

    def _layout(self, layer: Layer) -> Layout:
        return layout_of(self.state.session.structure, self.state.current_stack, layer.source)


def group_experts(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the same tensor of all experts under one name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_EXPERT_INDEX.sub("*", name), []).append(name)
    return groups


def _shape_text(types: Sequence[TensorType]) -> str:
    times = f"{len(types)}× " if len(types) > 1 else ""
    return times + "×".join(map(str, types[0].shape))


def _short_name(name: str) -> str:
    return name.removesuffix(".weight")


def _truncated(name: str, width: int) -> str:
    return name if len(name) <= width else f"…{name[-width + 1 :]}"
