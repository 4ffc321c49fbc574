"""The sweep: the losses of many layer sequences, with everything they share computed once.

The sequences form a trie. Layer by layer, every live prefix that goes through a layer goes through it together, so
each layer's weights are needed once for the whole sweep, and a common beginning is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise

import torch
from torch import nn

from surgeon.backend.calling import LayerCalls, LayerRunner, losses_of
from surgeon.backend.streaming import weights_of
from surgeon.core.jobs import IsCancelled
from surgeon.core.score import LayerSequence, Visit
from surgeon.errors import Cancelled, ScoreError

Silence = Callable[[nn.Module, frozenset[str]], ExitStack]
"""Returns a context in which the named sublayers of a layer put out zeros."""
Advance = Callable[[int, int], None]
"""Told how many layer forwards are done, and how many there are."""


class Trie:
    """The prefixes of layer sequences as numbered nodes; 0 is the empty one, and parents have lower numbers.

    No sequence may run backwards, so that one walk over the layers serves all.
    """

    def __init__(self, sequences: Mapping[str, LayerSequence]) -> None:
        """Collect every distinct prefix.

        Raises:
            ScoreError: a sequence runs backwards.
        """
        self._known: dict[tuple[int, Visit], int] = {}
        self._parents = [0]
        self._visits: list[Visit | None] = [None]
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

    def at(self, layer: int) -> Iterator[tuple[int, int, Visit]]:
        """Yield node, parent and visit of the prefixes that end in this layer, parents first."""
        for node in sorted(self._by_layer.get(layer, ())):
            visit = self._visits[node]
            assert visit is not None
            yield node, self._parents[node], visit

    def wanted_after(self, node: int, layer: int) -> bool:
        """Whether a prefix's hidden state is still needed when this layer is done."""
        return self._last_use.get(node, -1) > layer


@torch.inference_mode()
def sweep_losses(
    runner: LayerRunner, batches: Sequence[torch.Tensor], sequences: Mapping[str, LayerSequence],
    cancelled: IsCancelled, silence: Silence, advance: Advance,
) -> Iterator[tuple[str, list[float]]]:  # fmt: skip
    """Yield for each named layer sequence the loss of every calibration sequence, in nats per token."""
    trie = Trie(sequences)
    calls = [runner.record(tokens_BT) for tokens_BT in batches]
    states: dict[int, list[torch.Tensor]] = {0: [one.hidden_BTD for one in calls]}
    done = 0
    for number, layer in enumerate(runner.layers):
        visits = list(trie.at(number))
        with weights_of(layer) if visits else ExitStack():
            for node, parent, visit in visits:
                states[node] = _advance(runner, layer, states[parent], calls, visit, cancelled, silence)
                done += 1
                advance(done, trie.layer_forwards)
        states = {node: hidden for node, hidden in states.items() if trie.wanted_after(node, number)}
    measured: dict[int, list[float]] = {}
    for name, node in trie.ends.items():
        if node not in measured:
            measured[node] = _losses(runner, batches, states.pop(node), cancelled)
        yield name, measured[node]


def _advance(
    runner: LayerRunner, layer: nn.Module, before: Sequence[torch.Tensor], calls: Sequence[LayerCalls], visit: Visit,
    cancelled: IsCancelled, silence: Silence,
) -> list[torch.Tensor]:  # fmt: skip
    after = []
    with silence(layer, visit.silenced) if visit.silenced else ExitStack():
        for hidden_BTD, one in zip(before, calls, strict=True):
            if cancelled():
                raise Cancelled
            after.append(runner.run(layer, hidden_BTD, one.calls[visit.layer]))
    return after


def _losses(
    runner: LayerRunner, batches: Sequence[torch.Tensor], states: Sequence[torch.Tensor], cancelled: IsCancelled
) -> list[float]:
    losses: list[float] = []
    for tokens_BT, hidden_BTD in zip(batches, states, strict=True):
        if cancelled():
            raise Cancelled
        losses += losses_of(runner.logits(tokens_BT, hidden_BTD), tokens_BT).tolist()
    return losses
