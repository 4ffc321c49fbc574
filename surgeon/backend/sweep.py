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
from surgeon.core.score import LayerSequence
from surgeon.errors import Cancelled, ScoreError

Silence = Callable[[nn.Module, frozenset[str]], ExitStack]
"""Returns a context in which the named sublayers of a layer put out zeros."""
Advance = Callable[[int, int], None]
"""Told how many layer forwards are done, and how many there are."""


class Trie:
    """The prefixes of layer sequences. None may run backwards, so that one sweep over the layers serves all."""

    def __init__(self, sequences: Mapping[str, LayerSequence]) -> None:
        """Collect every distinct prefix.

        Raises:
            ScoreError: a sequence runs backwards.
        """
        for name, path in sequences.items():
            if any(after.layer < before.layer for before, after in pairwise(path)):
                raise ScoreError("runs backwards through the layers", where=f"layer sequence {name}")
        self.ends = dict(sequences)
        self.prefixes = {path[:length] for path in sequences.values() for length in range(1, len(path) + 1)}
        self._by_layer: dict[int, list[LayerSequence]] = {}
        self._last_use: dict[LayerSequence, float] = {}
        for path in sorted(self.prefixes, key=len):
            self._by_layer.setdefault(path[-1].layer, []).append(path)
            self._last_use[path[:-1]] = max(self._last_use.get(path[:-1], -1), path[-1].layer)
        self._last_use.update(dict.fromkeys(self.ends.values(), math.inf))

    @property
    def layer_forwards(self) -> int:
        """How many times a layer is run over each batch."""
        return len(self.prefixes)

    def at(self, layer: int) -> Sequence[LayerSequence]:
        """Return the prefixes that end in a visit of this layer, shorter ones first."""
        return self._by_layer.get(layer, ())

    def wanted_after(self, path: LayerSequence, layer: int) -> bool:
        """Whether a prefix's hidden state is still needed when this layer is done."""
        return self._last_use.get(path, -1) > layer


@torch.inference_mode()
def sweep_losses(
    runner: LayerRunner, batches: Sequence[torch.Tensor], sequences: Mapping[str, LayerSequence],
    cancelled: IsCancelled, silence: Silence, advance: Advance,
) -> Iterator[tuple[str, list[float]]]:  # fmt: skip
    """Yield for each named layer sequence the loss of every calibration sequence, in nats per token."""
    trie = Trie(sequences)
    calls = [runner.record(tokens_BT) for tokens_BT in batches]
    states: dict[LayerSequence, list[torch.Tensor]] = {(): [one.hidden_BTD for one in calls]}
    done = 0
    for number, layer in enumerate(runner.layers):
        paths = trie.at(number)
        with weights_of(layer) if paths else ExitStack():
            for path in paths:
                states[path] = _advance(runner, layer, states[path[:-1]], calls, path, cancelled, silence)
                done += 1
                advance(done, trie.layer_forwards)
        states = {path: hidden for path, hidden in states.items() if trie.wanted_after(path, number)}
    measured: dict[LayerSequence, list[float]] = {}
    for name, path in trie.ends.items():
        if path not in measured:
            measured[path] = _losses(runner, batches, states.pop(path), cancelled)
        yield name, measured[path]


def _advance(
    runner: LayerRunner, layer: nn.Module, before: Sequence[torch.Tensor], calls: Sequence[LayerCalls],
    path: LayerSequence, cancelled: IsCancelled, silence: Silence,
) -> list[torch.Tensor]:  # fmt: skip
    visit = path[-1]
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
