"""How a model calls its own layers, learned from the model instead of written again.

Masks, position embeddings and per-layer inputs are the model's business: its own forward runs with recorders in the
place of its layers, which tells each layer's arguments; and it runs again with the last hidden state injected, which
gives the norm, the head and the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgeon.backend.model.losses import next_token_labels, token_losses
from surgeon.errors import ArchitectureError, ScoreError

_LOGITS = {"cpu": 1 << 24}
_MOST_LOGITS = 1 << 27
"""How many logits are in memory at once: 64 MB of them on a CPU, where not even the layers may fit."""
_FEW, _ROUNDINGS = 8, 64
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class LayerCalls:
    """How the model calls its layers for one batch: what enters the first, and every layer's other arguments."""

    hidden_BTD: torch.Tensor
    calls: list[Arguments]

    def release(self) -> torch.Tensor:
        """Hand over the hidden state, so that it is not held here as well."""
        hidden_BTD = self.hidden_BTD
        self.hidden_BTD = hidden_BTD.new_empty(0)
        return hidden_BTD


class _LayerRecorder(nn.Module):
    """Takes a layer's place in a forward: notes how it is called and hands on a hidden state."""

    def __init__(self, layer: nn.Module, log: list[tuple[torch.Tensor, Arguments]], *, tupled: bool) -> None:
        super().__init__()
        # Not registered as a submodule: the layer already belongs to the model.
        object.__setattr__(self, "layer", layer)
        self.log, self.tupled = log, tupled
        self.inject: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            hidden_BTD, *rest = args
        else:
            hidden_BTD, rest = kwargs.pop("hidden_states"), []
        self.log.append((hidden_BTD, (tuple(rest), kwargs)))
        out_BTD = hidden_BTD if self.inject is None else self.inject
        return (out_BTD,) if self.tupled else out_BTD


class LayerRunner:
    """Runs a model layer by layer. `layers` is the live list; it is as it was whenever no method is running."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, tokens_BT: torch.Tensor) -> None:
        """Find out on two tokens whether layers return a tuple, as before transformers 5, or the bare hidden state."""
        self.model, self.layers = model, layers
        self.tupled = False
        handle = layers[0].register_forward_hook(self._note_output)
        try:
            model(input_ids=tokens_BT[:1, :2], use_cache=False)
        except _StopForward:
            pass
        finally:
            handle.remove()

    def _note_output(self, _module: nn.Module, _args: object, output: object) -> None:
        self.tupled = isinstance(output, tuple)
        # The other layers may have to be fetched from disk.
        raise _StopForward

    @contextmanager
    def _stand_ins(self) -> Iterator[tuple[list[tuple[torch.Tensor, Arguments]], list[_LayerRecorder]]]:
        real = list(self.layers)
        log: list[tuple[torch.Tensor, Arguments]] = []
        stand_ins = [_LayerRecorder(layer, log, tupled=self.tupled) for layer in real]
        try:
            for position, stand_in in enumerate(stand_ins):
                self.layers[position] = stand_in
            yield log, stand_ins
        finally:
            for position, layer in enumerate(real):
                self.layers[position] = layer

    def record(self, tokens_BT: torch.Tensor) -> LayerCalls:
        """Return how the model would call its layers for a batch.

        Raises:
            ArchitectureError: it does not call every layer once, in order, passing the hidden state along.
        """
        with self._stand_ins() as (log, _), suppress(_StopForward), self._before_head(_stop):
            self.model(input_ids=tokens_BT, use_cache=False)
        plain = len(log) == len(self.layers) and all(
            hidden is log[0][0] or (hidden.shape == log[0][0].shape and torch.equal(hidden, log[0][0]))
            for hidden, _ in log
        )
        if not plain:
            raise ArchitectureError(
                "its forward does not simply pass the hidden state from layer to layer",
                where=type(self.model).__name__,
                hint="scores that run layers on their own cannot be measured on this model",
            )
        return LayerCalls(log[0][0], [arguments for _, arguments in log])

    def run(self, layer: nn.Module, hidden_BTD: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """Run one layer on a hidden state.

        Raises:
            ScoreError: what comes out is not finite.
        """
        args, kwargs = arguments
        output = layer(hidden_BTD, *args, **kwargs)
        out_BTD: torch.Tensor = output[0] if isinstance(output, tuple) else output
        if not torch.isfinite(out_BTD).all():
            wide = out_BTD.dtype in (torch.float32, torch.float64)
            hint = "look for inf or nan in the weights" if wide else "measure in float32: --dtype float32"
            raise ScoreError("the hidden state is not finite", where=self._name(layer), hint=hint)
        return out_BTD

    def _name(self, layer: nn.Module) -> str:
        numbers = [number for number, one in enumerate(self.layers) if one is layer]
        return f"layer {numbers[0]}" if numbers else type(layer).__name__

    def logits(self, tokens_BT: torch.Tensor, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return the logits the model gives if its last layer returns `hidden_BTD`."""
        with self._stand_ins() as (_, stand_ins):
            stand_ins[-1].inject = hidden_BTD
            logits_BTV: torch.Tensor = self.model(input_ids=tokens_BT, use_cache=False).logits
        return logits_BTV

    def normed(self, tokens_BT: torch.Tensor, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return what enters the output head if the last layer returns `hidden_BTD`: it, through the final norm.

        Raises:
            ArchitectureError: the model has no output head.
        """
        if self._head is None:
            raise ArchitectureError("has no output head", where=type(self.model).__name__)
        seen: list[torch.Tensor] = []

        def note(entering: torch.Tensor) -> None:
            seen.append(entering)
            raise _StopForward

        with suppress(_StopForward), self._before_head(note):
            self.logits(tokens_BT, hidden_BTD)
        if not seen:
            raise ArchitectureError("does not call its output head", where=type(self.model).__name__)
        return seen[0]

    def require_plain_end(self, tokens_BT: torch.Tensor) -> None:
        """Try on a few tokens that what follows the layers needs no more than the last one's output, token by token.

        Raises:
            ArchitectureError: it does, so that no loss can be told from a hidden state.
        """
        tokens_BT = tokens_BT[:1, :_FEW]
        seen: list[Any] = []
        handle = self.layers[-1].register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            whole_BTV = self.model(input_ids=tokens_BT, use_cache=False).logits
        finally:
            handle.remove()
        if not whole_BTV.isfinite().all():
            return  # nothing can be compared, and the pass itself names the layer that is to blame
        hidden_BTD = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
        if hidden_BTD.shape[:2] == tokens_BT.shape:
            whole = float(whole_BTV.abs().max())
            if self._off(tokens_BT, hidden_BTD, whole_BTV) <= _ROUNDINGS * torch.finfo(whole_BTV.dtype).eps * whole:
                return
        raise ArchitectureError(
            "what follows its layers uses more than the last hidden state", where=type(self.model).__name__,
            hint="scores that run layers on their own cannot be measured on this model",
        )  # fmt: skip

    def _off(self, tokens_BT: torch.Tensor, hidden_BTD: torch.Tensor, whole_BTV: torch.Tensor) -> float:
        """Return how far the logits of a hidden state, at once and in two parts, are from those of the whole model."""
        parts = zip(*(torch.split(whole, _FEW // 2 + 1, dim=1) for whole in (tokens_BT, hidden_BTD)), strict=True)
        in_parts_BTV = torch.cat([self.logits(tokens, hidden) for tokens, hidden in parts], dim=1)
        found = (self.logits(tokens_BT, hidden_BTD), in_parts_BTV)
        return max(float((one_BTV - whole_BTV).abs().max()) for one_BTV in found)

    def losses(self, tokens_BT: torch.Tensor, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Return each sequence's loss, as `losses_of` does, if the last layer returns `hidden_BTD`.

        What follows the layers treats every token on its own, so that few logits need to be in memory at once.
        """
        targets_BT = next_token_labels(tokens_BT)
        most = self._tokens_at_once(tokens_BT.device)
        rows = max(1, most // tokens_BT.shape[1])
        parts = zip(*(torch.split(whole, rows) for whole in (tokens_BT, hidden_BTD, targets_BT)), strict=True)
        return torch.cat([self._losses_of_rows(*part, most=most) for part in parts])

    def _losses_of_rows(
        self, tokens_BT: torch.Tensor, hidden_BTD: torch.Tensor, targets_BT: torch.Tensor, *, most: int
    ) -> torch.Tensor:
        spans = zip(*(torch.split(whole, most, dim=1) for whole in (tokens_BT, hidden_BTD, targets_BT)), strict=True)
        losses_BT = [token_losses(self.logits(tokens, hidden), targets) for tokens, hidden, targets in spans]
        return torch.cat(losses_BT, dim=1).sum(dim=1) / (tokens_BT.shape[1] - 2)

    def _tokens_at_once(self, device: torch.device) -> int:
        words: int = 1 if self._head is None else self._head.weight.shape[0]
        return max(1, _LOGITS.get(device.type, _MOST_LOGITS) // words)

    @property
    def _head(self) -> Any:
        get: Callable[[], Any] | None = getattr(self.model, "get_output_embeddings", None)
        return get() if get is not None else None

    @contextmanager
    def _before_head(self, note: Callable[[torch.Tensor], None]) -> Iterator[None]:
        """Have `note` called with what enters the output head, where the model has one that is a module."""
        head = self._head
        handle = head.register_forward_pre_hook(lambda _module, args: note(args[0])) if head is not None else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()


class _StopForward(Exception):
    """Ends a forward early."""


def _stop(_entering: torch.Tensor) -> None:
    raise _StopForward
