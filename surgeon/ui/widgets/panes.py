"""The recipe and the layer in detail, as lists of lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rich.style import Style
from rich.text import Text

from surgeon.core.checkpoint.checkpoint import Tensor
from surgeon.core.plan.draft import Layer, base_tensors
from surgeon.core.structure.structure import OTHER
from surgeon.ui.state.formatting import bar, bytes_text, count_change, count_text
from surgeon.ui.state.layer_rows import draft_parameters, source_text
from surgeon.ui.state.screen_state import Room
from surgeon.ui.widgets.list_view import Lines

_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")
_BAR_CELLS = 12
_UNTRAINED = "·"


class RecipePane(Lines):
    """The steps: ✓ applied, ○ undone. Enter goes to the step under the cursor."""

    HELP = "The steps of the recipe. Enter undoes or redoes up to the step under the cursor."

    def __init__(self, room: Room) -> None:
        super().__init__(id="recipe")
        self.room = room
        self.cursor = 0

    def show(self) -> None:
        """Read the steps again."""
        session, looks = self.room.session, self.looks
        lines = [
            Text.assemble(
                ("  0 ", looks.faint), ("● ", looks.accent), (session.checkpoint.path.name or session.model, looks.dim)
            )
        ]
        for number, step in enumerate(session.steps, start=1):
            lines.append(self._step(number, self.room.step_titles[number - 1], step.resolved))
        if not session.steps:
            lines.append(Text("    no steps yet", looks.faint))
        path = session.recipe_path
        self.border_title = f"recipe {path.name if path else ''}{'*' if session.unsaved else ''}".strip()
        self.border_subtitle = "u undo · ctrl+r redo" if session.steps else ""
        self.set_lines(lines)
        self.cursor = min(self.cursor or 0, len(session.steps))

    def follow(self) -> None:
        """Put the cursor on the newest applied step."""
        self.cursor = self.room.session.position
        self.move(0)

    def _step(self, number: int, title: str, resolved: Mapping[str, tuple[int | str, ...]] | None) -> Text:
        looks, session = self.looks, self.room.session
        applied, here = number <= session.position, number == session.position
        line = Text(no_wrap=True)
        line.append(f"{number:>3} ", looks.faint)
        line.append("✓ " if applied else "○ ", looks.good if applied else looks.faint)
        line.append(title, (looks.title if here else looks.ink) if applied else looks.faint)
        if resolved:
            line.append(
                f" = {','.join(map(str, next(iter(resolved.values()))))}", looks.dim if applied else looks.faint
            )
        if applied:
            before, after = (draft_parameters(session.draft_at(at)) for at in (number - 1, number))
            line.append(f"  {count_change(after - before)}" if after != before else "", looks.dim)
        else:
            line.append("  undone", looks.faint)
        return line


class DetailPane(Lines):
    """The layer under the cursor: where it comes from, its scores, its tensors."""

    HELP = "The layer under the cursor: its settings, its scores and its tensors."

    def __init__(self, room: Room) -> None:
        super().__init__(id="detail")
        self.room = room

    def show(self) -> None:
        """Read the layer again."""
        row = self.room.row
        place = "pruned" if row.position is None else f"position {row.position}"
        self.border_title = f"layer {row.key}" + ("" if row.key == str(row.position) else f" · {place}")
        self.set_lines([*self._about(row.layer), *self._scores(row.key), *self._tensors(row.layer, row.key)])

    def _fact(self, name: str, value: str, style: Style | None = None) -> Text:
        return Text.assemble((f" {name:<11}", self.looks.dim), (value, style or self.looks.ink), no_wrap=True)

    def _about(self, layer: Layer) -> Iterator[Text]:
        looks, stack = self.looks, self.room.stack_here
        tensors = base_tensors(layer.source, stack)
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        count = sum(tensor.parameters for tensor in tensors.values())
        yield self._fact("size", f"{count_text(count)} params · {bytes_text(nbytes)} · {len(tensors)} tensors")
        yield self._fact("weights", source_text(layer.source), looks.violet if layer.inserted else None)
        for name, value in layer.settings.items():
            if value is not None:
                yield self._fact(name, str(value))
        if layer.frozen:
            yield self._fact("frozen", ", ".join(sorted(layer.frozen)), looks.ice)
        if layer.lora:
            lora = next(iter(layer.lora.values()))
            yield self._fact(
                "adapter", f"rank {lora.rank} alpha {lora.alpha:g} on {', '.join(sorted(layer.lora))}", looks.gold
            )
        yield Text()

    def _scores(self, key: str) -> Iterator[Text]:
        looks, any_shown = self.looks, False
        for column in self.room.columns:
            if key not in column.values:
                continue
            any_shown = True
            value = column.values[key]
            step = looks.on_ramp(column.scale.rank(value))
            stale = self.room.is_stale(column)
            error = f" ±{column.errors[key]:.1g}" if key in column.errors else ""
            order = sorted(column.values, key=lambda other: column.values[other])
            line = Text(no_wrap=True)
            line.append(f" {column.title:<10} ", looks.title)
            line.append(f"{value:.4g}", looks.faint if stale else looks.ramp_ink[step])
            line.append(error, looks.dim)
            line.append(" " * max(1, 16 - len(f"{value:.4g}{error}")))
            line.append(bar(column.scale.length(value), _BAR_CELLS), looks.track if stale else looks.ramp[step])
            line.append(f" {order.index(key) + 1}/{len(order)}", looks.dim)
            line.append("~" if stale else "", looks.warning)
            yield line
        if any_shown:
            yield Text()

    def _tensors(self, layer: Layer, key: str) -> Iterator[Text]:
        looks, structure = self.looks, self.room.session.structure
        shown = [column for column in self.room.columns if key in column.matrices]
        groups = grouped(base_tensors(layer.source, self.room.stack_here))
        wide = min(26, max((len(_bare(name)) for name in groups), default=0))
        heads = "".join(f"{column.title:>9}" for column in shown)
        yield Text(f" {'tensor':<{wide}} {'shape':<10}{heads}{'bytes':>9}  dtype role", looks.dim, no_wrap=True)
        for name, tensors in groups.items():
            tensor, suffix = tensors[0], self._suffix(tensors[0], name)
            line = Text(no_wrap=True)
            line.append(f" {_shortened(_bare(name), wide):<{wide}} ", looks.ink)
            times = f"{len(tensors)}× " if len(tensors) > 1 else ""
            line.append(f"{times + '×'.join(map(str, tensor.shape)):<10}", looks.accent)
            for column in shown:
                value, untrained = column.matrices[key].get(suffix), (key, suffix) in column.untrained
                cell = _UNTRAINED if untrained else f"{value:.4g}" if value is not None else ""
                line.append(f"{cell:>9}", looks.ink)
            line.append(f"{bytes_text(sum(each.nbytes for each in tensors)):>9}", looks.dim)
            role = structure.role(suffix)
            style = looks.ice if role in layer.frozen else looks.gold if role in layer.lora else looks.faint
            line.append(f"  {tensor.dtype.lower():<5}", looks.dim)
            line.append(f" {'' if role == OTHER else role}", style)
            yield line
        if any(layer_key == key for column in shown for layer_key, _ in column.untrained):
            yield Text(f" {_UNTRAINED} was not trained", looks.dim, no_wrap=True)

    def _suffix(self, tensor: Tensor, name: str) -> str:
        if "*" not in name:
            return name
        return tensor.name[len(self.room.stack_here.prefix) + 1 :].partition(".")[2]


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Put the same tensor of all experts on one line."""
    groups: dict[str, list[Tensor]] = {}
    for suffix, tensor in tensors.items():
        groups.setdefault(_EXPERT.sub("*", suffix), []).append(tensor)
    return groups


def _bare(name: str) -> str:
    return name.removesuffix(".weight")


def _shortened(name: str, width: int) -> str:
    return name if len(name) <= width else f"…{name[-width + 1 :]}"
