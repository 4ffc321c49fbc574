"""The bar of a layer's parameters by module: attention, mlp, experts, router, the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.segment import Segment

from surgeon.core.plan.draft import Source
from surgeon.ui.state.layer_rows import LayerRow
from surgeon.ui.state.parameter_counts import module_parameters
from surgeon.ui.state.screen_state import ScreenState
from surgeon.ui.theme import ThemeStyles

_MAX_CELLS = 40
_MODULES = {"attention": ("━", "blue"), "mlp": ("─", "accent"), "experts": ("═", "violet"), "router": ("╍", "yellow")}
_OTHER = ("╌", "dim")
_HINT = "S measures importance "


class ModuleBar:
    """Renders the bars and their legend. Keeps the counts, which depend on a layer's stack and source."""

    def __init__(self, state: ScreenState) -> None:
        self._state = state
        self._counts: dict[tuple[str, Source], dict[str, int]] = {}

    def legend(self, width: int, styles: ThemeStyles) -> Iterator[Segment]:
        """Name the modules of all layers; at the right, how scores are measured."""
        used = 1
        yield Segment(" ")
        kinds = {kind for row in self._state.rows for kind in self._counts_of(row)}
        for kind in _in_order(kinds):
            glyph, colour = _MODULES.get(kind, _OTHER)
            if kind not in _MODULES and kind != "norm":
                continue
            yield Segment(f"{glyph * 2} ", getattr(styles, colour))
            yield Segment(f"{kind}  ", styles.dim)
            used += len(kind) + 5
        gap = width - used - len(_HINT)
        yield Segment(" " * max(0, gap) + (_HINT if gap >= 0 else ""), styles.accent)

    def render(self, row: LayerRow, width: int, largest: int, styles: ThemeStyles) -> Iterator[Segment]:
        """Render a layer's bar; its length is relative to the largest layer."""
        counts, used = self._counts_of(row), 0
        removed = row.position is None
        cells = max(1, round(row.parameters / largest * min(width - 1, _MAX_CELLS)))
        kinds = _in_order(counts)
        yield Segment(" ")
        for number, kind in enumerate(kinds):
            share = round(counts[kind] / (row.parameters or 1) * cells)
            share = min(share, cells - used) if number < len(kinds) - 1 or kind in _MODULES else cells - used
            glyph, colour = _MODULES.get(kind, _OTHER)
            yield Segment(
                "┄" * share if removed else glyph * share, styles.faint if removed else getattr(styles, colour)
            )
            used += share
        yield Segment(" " * max(0, width - used))

    def _counts_of(self, row: LayerRow) -> dict[str, int]:
        stack, source = self._state.stack_name, row.layer.source
        if (stack, source) not in self._counts:
            self._counts[stack, source] = module_parameters(self._state.session.structure, source, stack)
        return self._counts[stack, source]


def _in_order(kinds: Iterable[str]) -> list[str]:
    return sorted(kinds, key=lambda kind: (kind not in _MODULES, kind))
