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

from surgeon.backend.calling import LayerCalls, LayerRunner
from surgeon.backend.states import HiddenStates
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

    def wanted_after(self, layer: int) -> set[int]:
        """Return the prefixes whose hidden states are still needed when this layer is done."""
        return {node for node, last in self._last_use.items() if last > layer}


@torch.inference_mode()
def sweep_losses(
    runner: LayerRunner, batches: Sequence[torch.Tensor], sequences: Mapping[str, LayerSequence],
    cancelled: IsCancelled, silence: Silence, advance: Advance, room: int,
) -> Iterator[tuple[str, list[float]]]:  # fmt: skip
    """Yield for each named layer sequence the loss of every calibration sequence, in nats per token.

    Of the hidden states, one for each live prefix, `room` bytes stay in memory and the rest goes to a file.
    """
    trie = Trie(sequences)
    with HiddenStates(room) as states:
        calls = [runner.record(tokens_BT) for tokens_BT in batches]
        for batch, one in enumerate(calls):
            states.put(0, batch, one.release())
        done = 0
        for number, layer in enumerate(runner.layers):
            visits = list(trie.at(number))
            with weights_of(layer) if visits else ExitStack():
                for node, parent, visit in visits:
                    with silence(layer, visit.silenced) if visit.silenced else ExitStack():
                        _advance(runner, layer, number, states, (parent, node), calls, cancelled)
                    done += 1
                    advance(done, trie.layer_forwards)
            states.keep_only(trie.wanted_after(number))
        measured: dict[int, list[float]] = {}
        for name, node in trie.ends.items():
            if node not in measured:
                measured[node] = losses_after(runner, batches, states, node, cancelled)
            yield name, measured[node]


def _advance(
    runner: LayerRunner, layer: nn.Module, number: int, states: HiddenStates, nodes: tuple[int, int],
    calls: Sequence[LayerCalls], cancelled: IsCancelled,
) -> None:  # fmt: skip
    before, after = nodes
    for batch, one in enumerate(calls):
        if cancelled():
            raise Cancelled
        states.put(after, batch, runner.run(layer, states.get(before, batch), one.calls[number]))


def losses_after(
    runner: LayerRunner, batches: Sequence[torch.Tensor], states: HiddenStates, variant: int, cancelled: IsCancelled
) -> list[float]:
    """Return the losses of a variant whose last hidden states are known, and let go of those."""
    losses: list[float] = []
    for batch, tokens_BT in enumerate(batches):
        if cancelled():
            raise Cancelled
        losses += runner.losses(tokens_BT, states.get(variant, batch)).tolist()
    states.drop(variant)
    return losses
