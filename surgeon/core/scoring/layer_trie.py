"""Layer sequences as a trie: what they have in common is there once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from surgeon.core.scoring.score_kinds import LayerCall, LayerSequence

Place = tuple[float, int]
"""A walk over the layers, and a layer on it."""


class Trie:
    """The prefixes of layer sequences as numbered nodes; 0 is the empty one, and parents have lower numbers.

    One walk over the layers serves all sequences that do not run backwards. Where one does, it waits for another walk:
    a prefix belongs to the walk whose number is how often it runs backwards.
    """

    def __init__(self, sequences: Mapping[str, LayerSequence]) -> None:
        """Collect every distinct prefix."""
        self._known: dict[tuple[int, LayerCall], int] = {}
        self._parents = [0]
        self._visits: list[LayerCall | None] = [None]
        self._by_place: dict[Place, list[int]] = {}
        self._last_use: dict[int, Place] = {}
        self.ends = {name: self._add(path) for name, path in sequences.items()}
        self._last_use.update(dict.fromkeys(self.ends.values(), (math.inf, 0)))

    def _add(self, path: LayerSequence) -> int:
        node, walk, before = 0, 0, -1
        for visit in path:
            walk += visit.layer < before
            parent, node = node, self._known.setdefault((node, visit), len(self._parents))
            if node == len(self._parents):
                self._parents.append(parent)
                self._visits.append(visit)
                self._by_place.setdefault((walk, visit.layer), []).append(node)
            self._last_use[parent] = max(self._last_use.get(parent, (-1, 0)), (walk, visit.layer))
            before = visit.layer
        return node

    @property
    def layer_forwards(self) -> int:
        """How many times a layer is run over each batch."""
        return len(self._known)

    @property
    def walks(self) -> int:
        """How many times the layers are walked over."""
        return 1 + max((int(walk) for walk, _ in self._by_place), default=0)

    def at(self, layer: int, walk: int = 0) -> Iterator[tuple[int, int, LayerCall]]:
        """Yield node, parent and visit of the prefixes of a walk that end in this layer, parents first."""
        for node in sorted(self._by_place.get((walk, layer), ())):
            visit = self._visits[node]
            assert visit is not None
            yield node, self._parents[node], visit

    def wanted_after(self, layer: int, walk: int = 0) -> set[int]:
        """Return the prefixes whose hidden states are still needed when this layer of a walk is done."""
        return {node for node, last in self._last_use.items() if last > (walk, layer)}
