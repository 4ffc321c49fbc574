"""Layer sequences as a trie: what they have in common is there once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

from surgeon.core.scoring.score_kinds import LayerCall, LayerSequence
from surgeon.errors import ScoreError


class Trie:
    """The prefixes of layer sequences as numbered nodes; 0 is the empty one, and parents have lower numbers.

    No sequence may run backwards, so that one walk over the layers serves all.
    """

    def __init__(self, sequences: Mapping[str, LayerSequence]) -> None:
        """Collect every distinct prefix.

        Raises:
            ScoreError: a sequence runs backwards.
        """
        self._known: dict[tuple[int, LayerCall], int] = {}
        self._parents = [0]
        self._visits: list[LayerCall | None] = [None]
        self._by_layer: dict[int, list[int]] = {}
        self._last_use: dict[int, float] = {}
        for name, path in sequences.items():
            if any(after.layer < before.layer for before, after in pairwise(path)):
                raise ScoreError("runs backwards through the layers", where=f"layer sequence {name}")
        self.ends = {name: self._add(path) for name, path in sequences.items()}
        self._last_use.update(dict.fromkeys(self.ends.values(), math.inf))

    def _add(self, path: LayerSequence) -> int:
        node = 0
        for visit in path:
            parent, node = node, self._known.setdefault((node, visit), len(self._parents))
            if node == len(self._parents):
                self._parents.append(parent)
                self._visits.append(visit)
                self._by_layer.setdefault(visit.layer, []).append(node)
            self._last_use[parent] = max(self._last_use.get(parent, -1), visit.layer)
        return node

    @property
    def layer_forwards(self) -> int:
        """How many times a layer is run over each batch."""
        return len(self._known)

    def at(self, layer: int) -> Iterator[tuple[int, int, LayerCall]]:
        """Yield node, parent and visit of the prefixes that end in this layer, parents first."""
        for node in sorted(self._by_layer.get(layer, ())):
            visit = self._visits[node]
            assert visit is not None
            yield node, self._parents[node], visit

    def wanted_after(self, layer: int) -> set[int]:
        """Return the prefixes whose hidden states are still needed when this layer is done."""
        return {node for node, last in self._last_use.items() if last > layer}
