"""The activations, inputs and gradients passes: each once, for all scores that asked.

Layer-major: one layer is pushed over all batches before the next one is touched. So scores arrive row by row while the
pass works, and a model whose layers lie on disk needs one of them in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgeon.backend.model.layer_runner import LayerRunner
from surgeon.backend.model.losses import losses_of
from surgeon.backend.model.streaming import weights_in_order
from surgeon.backend.scoring.hidden_states import HiddenStates
from surgeon.core.job_context import IsCancelled
from surgeon.errors import ArchitectureError, Cancelled


@dataclass(frozen=True)
class LayerPass:
    """One layer, pushed over one batch; `last` when it has now been pushed over all of them."""

    layer: int
    batch: int
    hidden_in_BTD: torch.Tensor
    hidden_out_BTD: torch.Tensor
    last: bool


Watch = Callable[[int, nn.Module], ExitStack]
"""Entered around all work with one layer: its position and the layer."""


@torch.inference_mode()
def push_layers(
    runner: LayerRunner, batches: Sequence[torch.Tensor], cancelled: IsCancelled, room: int, watch: Watch | None = None
) -> Iterator[LayerPass]:
    """Yield every layer over every batch, all batches of a layer before the next.

    Of the batches' hidden states, `room` bytes stay in memory and the rest goes to a file. A family whose layers cannot
    be run on their own is run whole, with hooks: the same passes, in the other order.

    Raises:
        ScoreError: a hidden state is not finite.
    """
    try:
        recorded = [runner.record(tokens_BT) for tokens_BT in batches]
    except ArchitectureError:
        if watch is not None:
            raise
        yield from _push_whole(runner, batches, cancelled)
        return
    with HiddenStates(room) as states, weights_in_order(list(runner.layers)) as weights:
        for batch, one in enumerate(recorded):
            states.put(0, batch, one.release())
        for number, layer in enumerate(runner.layers):
            with weights(number), watch(number, layer) if watch else ExitStack():
                for batch, one in enumerate(recorded):
                    if cancelled():
                        raise Cancelled
                    before_BTD = states.get(0, batch)
                    after_BTD = runner.run(layer, before_BTD, one.calls[number])
                    yield LayerPass(number, batch, before_BTD, after_BTD, last=batch == len(batches) - 1)
                    states.put(0, batch, after_BTD)
                    one.calls[number] = ((), {})


def _push_whole(runner: LayerRunner, batches: Sequence[torch.Tensor], cancelled: IsCancelled) -> Iterator[LayerPass]:
    for batch, tokens_BT in enumerate(batches):
        if cancelled():
            raise Cancelled
        seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        with ExitStack() as hooks:
            for number, layer in enumerate(runner.layers):
                hooks.enter_context(_hooked(layer, number, seen))
            runner.model(input_ids=tokens_BT, use_cache=False)
        for number, (hidden_in_BTD, hidden_out_BTD) in sorted(seen.items()):
            yield LayerPass(number, batch, hidden_in_BTD, hidden_out_BTD, last=batch == len(batches) - 1)


def _hooked(
    layer: nn.Module, number: int, seen: dict[int, tuple[torch.Tensor, torch.Tensor]]
) -> torch.utils.hooks.RemovableHandle:
    def note(
        _module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], output: object
    ) -> None:
        hidden_in_BTD = args[0] if args else kwargs["hidden_states"]
        seen[number] = (hidden_in_BTD, output[0] if isinstance(output, tuple) else output)  # type: ignore[assignment]

    return layer.register_forward_hook(note, with_kwargs=True)


class InputCovariance:
    """Accumulates the covariance of what enters each linear module of a layer, in float64.

    Position 0 is left out: one massive activation there would be nearly all of the variance.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._sums: dict[str, tuple[int, torch.Tensor, torch.Tensor]] = {}
        self._shape = (0, 0)

    def watch(self, layer: nn.Module) -> ExitStack:
        """Return a context in which every linear module of the layer is watched."""
        stack = ExitStack()
        stack.enter_context(layer.register_forward_pre_hook(self._note_shape, with_kwargs=True))
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                stack.enter_context(module.register_forward_pre_hook(self._note(name)))
        return stack

    def _note_shape(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch, tokens, _ = (args[0] if args else kwargs["hidden_states"]).shape
        self._shape = (batch, tokens)

    def _note(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def note(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            entering = args[0].detach()
            if entering.dim() == 2 and entering.shape[0] == math.prod(self._shape):  # routers see all tokens in a row
                entering = entering.reshape(*self._shape, -1)
            if entering.shape[:2] == self._shape:
                entering = entering[:, 1:]
            rows_ND = entering.reshape(-1, entering.shape[-1]).double()
            count, total, squares = self._sums.get(name, (0, 0.0, 0.0))
            self._sums[name] = (count + rows_ND.shape[0], total + rows_ND.sum(0), squares + rows_ND.T @ rows_ND)

        return note

    def take(self) -> dict[str, torch.Tensor]:
        """Return the covariances by module name, and forget them."""
        found = {}
        for name, (count, total, squares) in self._sums.items():
            mean = total / count
            found[name] = squares / count - torch.outer(mean, mean)
        self._sums = {}
        return found


def sequence_gradients(model: nn.Module, tokens_BT: torch.Tensor, cancelled: IsCancelled) -> Iterator[int]:
    """Yield once per calibration sequence, when the parameters' `.grad` holds the gradient of that sequence's loss."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        for number, tokens_T in enumerate(tokens_BT):
            if cancelled():
                raise Cancelled
            model.zero_grad(set_to_none=True)
            logits_BTV = model(input_ids=tokens_T[None], use_cache=False).logits
            torch.autograd.backward(losses_of(logits_BTV, tokens_T[None]).sum())
            yield number
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, before in wanted:
            parameter.requires_grad_(before)
