"""The pass engine: each kind of pass once, layer by layer, for all scores that asked.

How a model calls its own layers (masks, position embeddings, per-layer inputs) is not written again here: the model's
own forward runs with its layers replaced by recorders, which tells each layer's arguments; then every layer is pushed
over all batches before the next one is touched. So scores arrive row by row, and one layer at a time is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgeon.core.jobs import IsCancelled
from surgeon.errors import ArchitectureError, Cancelled, ScoreError


@dataclass
class LayerCalls:
    """How the model called its layers for one batch: what enters the first one, and each one's other arguments."""

    hidden_BTD: torch.Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class _Recorder(nn.Module):
    """Stands in for a layer: notes how it is called and hands the hidden state on."""

    def __init__(
        self, layer: nn.Module, log: list[tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]], *, returns_tuple: bool
    ) -> None:
        super().__init__()
        # Not registered as a submodule: the wrapped layer already belongs to the model.
        object.__setattr__(self, "wrapped", layer)
        self.log, self.returns_tuple = log, returns_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "wrapped"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            hidden, *rest = args
        else:
            hidden, rest = kwargs.pop("hidden_states"), []
        self.log.append((hidden, tuple(rest), kwargs))
        return (hidden,) if self.returns_tuple else hidden


def record_calls(
    model: nn.Module, layers: nn.ModuleList, tokens_BT: torch.Tensor, *, returns_tuple: bool
) -> LayerCalls:
    """Run the model's forward without its layers, and return how it would have called them.

    Raises:
        ArchitectureError: the forward did not call every layer once, in order, passing the hidden state along.
    """
    log: list[tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]] = []
    real = list(layers)
    try:
        for position, layer in enumerate(real):
            layers[position] = _Recorder(layer, log, returns_tuple=returns_tuple)
        model(input_ids=tokens_BT, use_cache=False)
    finally:
        for position, layer in enumerate(real):
            layers[position] = layer
    if len(log) != len(real) or any(
        hidden is not log[0][0] and not torch.equal(hidden, log[0][0]) for hidden, _, _ in log
    ):
        raise ArchitectureError(
            "its forward does not simply pass the hidden state from layer to layer",
            where=type(model).__name__,
            hint="scores that need activations cannot be measured on this model yet",
        )
    return LayerCalls(log[0][0], [(args, kwargs) for _, args, kwargs in log])


def returns_tuple(model: nn.Module, layers: nn.ModuleList, tokens_BT: torch.Tensor) -> bool:
    """Find out whether layers return a tuple, as before transformers 5, or the bare hidden state."""
    seen: list[bool] = []
    handle = layers[0].register_forward_hook(lambda _module, _args, output: seen.append(isinstance(output, tuple)))
    try:
        model(input_ids=tokens_BT[:1, :2], use_cache=False)
    finally:
        handle.remove()
    return bool(seen and seen[0])


@dataclass(frozen=True)
class LayerPass:
    """One layer, pushed over one batch."""

    layer: int
    batch: int
    hidden_in_BTD: torch.Tensor
    hidden_out_BTD: torch.Tensor


@torch.inference_mode()
def push_layers(
    model: nn.Module, layers: nn.ModuleList, batches: Sequence[torch.Tensor], cancelled: IsCancelled
) -> Iterator[LayerPass]:
    """Yield every layer over every batch, layer-major: all batches of layer 0, then all of layer 1, and so on.

    Raises:
        ArchitectureError: the model's layers cannot be run on their own. ScoreError: a hidden state is not finite.
    """
    tupled = returns_tuple(model, layers, batches[0])
    recorded = [record_calls(model, layers, tokens_BT, returns_tuple=tupled) for tokens_BT in batches]
    for number, layer in enumerate(layers):
        for batch, one in enumerate(recorded):
            if cancelled():
                raise Cancelled
            args, kwargs = one.calls[number]
            output = layer(one.hidden_BTD, *args, **kwargs)
            hidden_BTD = output[0] if isinstance(output, tuple) else output
            if not torch.isfinite(hidden_BTD).all():
                raise ScoreError(
                    "the hidden state is not finite",
                    where=f"layer {number}",
                    hint="measure in float32: --dtype float32",
                )
            yield LayerPass(number, batch, one.hidden_BTD, hidden_BTD)
            one.hidden_BTD = hidden_BTD
            one.calls[number] = ((), {})
