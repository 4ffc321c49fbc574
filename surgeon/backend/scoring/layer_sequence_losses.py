"""The sweep: the losses of many layer sequences, with everything they share computed once.

The sequences form a trie. Layer by layer, every live prefix that goes through a layer goes through it together, so
each layer's weights are needed once for the whole sweep, and a common beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from surgeon.backend.model.layer_runner import LayerCalls, LayerRunner
from surgeon.backend.model.streaming import weights_in_order
from surgeon.backend.scoring.hidden_states import HiddenStates
from surgeon.core.job_context import IsCancelled
from surgeon.core.scoring.layer_trie import Trie
from surgeon.core.scoring.score_kinds import LayerSequence
from surgeon.errors import Cancelled

Silence = Callable[[nn.Module, frozenset[str]], ExitStack]
"""Returns a context in which the named sublayers of a layer put out zeros."""
Advance = Callable[[int, int], None]
"""Told how many layer forwards are done, and how many there are."""


@torch.inference_mode()
def sweep_losses(
    runner: LayerRunner, batches: Sequence[torch.Tensor], sequences: Mapping[str, LayerSequence],
    cancelled: IsCancelled, silence: Silence, advance: Advance, room: int,
) -> Iterator[tuple[str, list[float]]]:  # fmt: skip
    """Yield for each named layer sequence the loss of every calibration sequence, in nats per token.

    Of the hidden states, one for each live prefix, `room` bytes stay in memory and the rest goes to a file.

    Raises:
        ScoreError: a hidden state is not finite, or does not fit on the disk.
        ArchitectureError: the model does not simply pass a hidden state through its layers and on to its head.
    """
    trie = Trie(sequences)
    runner.require_plain_end(batches[0])
    used = [number for number in range(len(runner.layers)) if any(trie.at(number))]
    with HiddenStates(room) as states, weights_in_order(list(runner.layers), used) as weights:
        calls = [runner.record(tokens_BT) for tokens_BT in batches]
        for batch, one in enumerate(calls):
            states.put(0, batch, one.release())
        done = 0
        for number, layer in enumerate(runner.layers):
            visits = list(trie.at(number))
            with weights(number) if visits else ExitStack():
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
