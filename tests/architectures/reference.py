"""What the logits must be, told without surgeon's code: the untouched base, its layers called in another order.

The base runs once as it is, while each layer's arguments (masks, position embeddings, per-layer inputs) are noted. Then
any sequence of its layers is called by hand, each with its own arguments, and the base runs again with the result in
place of what its last layer returned, which gives the norm, the head and the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_HIDDEN_NAMES = ("hidden_states", "x", "hidden", "inputs")


class NoReference(Exception):
    """The layers of this model cannot be called on their own."""


class Reference:
    """The base, and what it says about any sequence of its layers."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], tokens_BT: torch.Tensor) -> None:
        self.model, self.layers, self.tokens_BT = model, list(layers), tokens_BT
        self.calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.outputs: dict[int, Any] = {}
        self.count = 0
        with _forwards_replaced(self.layers, self._recording):
            self.logits = self._run()
        if self.count != len(self.calls):
            raise NoReference(f"{self.count} calls of {len(self.calls)} layers")
        self.first = min(self.calls)
        self.name = next((name for name in _HIDDEN_NAMES if name in self.calls[self.first][1]), None)
        self.carries = self._carries()
        if not torch.equal(self.of(range(len(self.layers))), self.logits):
            raise NoReference("the layers, called one after the other, do not give the logits: they talk to each other")

    @torch.inference_mode()
    def of(self, order: Sequence[int]) -> torch.Tensor:
        """Return the logits of the base with its layers in this order, some left out or repeated."""
        hidden = self._hidden_in(self.first)
        output: Any = None
        carried = {name: _argument(self.calls[self.first], name) for name in self.carries}
        for position in order:
            if position not in self.calls:
                continue  # a cross-attention layer without an image
            args, kwargs = self.calls[position]
            args = tuple(carried.get(at, value) for at, value in enumerate(args))
            kwargs = {**kwargs, **{name: value for name, value in carried.items() if isinstance(name, str)}}
            if args:
                output = self.layers[position](hidden, *args[1:], **kwargs)
            else:
                output = self.layers[position](**{**kwargs, str(self.name): hidden})
            hidden = _first(output)
            carried = {name: output[place] for name, place in self.carries.items()}
        with _forwards_replaced(self.layers, lambda _position, _forward: lambda *_args, **_kwargs: output):
            return self._run()

    def _carries(self) -> dict[str | int, int]:
        """Return which further outputs of a layer are arguments of the next one, by name or by place."""
        found: dict[str | int, int] = {}
        for position, (args, kwargs) in self.calls.items():
            before = self.outputs.get(position - 1)
            arguments: list[tuple[str | int, Any]] = [*list(enumerate(args))[1:], *kwargs.items()]
            for place, output in enumerate(before if isinstance(before, tuple) else ()):
                found.update(
                    (name, place) for name, value in arguments if place and value is output and value is not None
                )
        return found

    def _hidden_in(self, position: int) -> torch.Tensor:
        args, kwargs = self.calls[position]
        if args:
            return args[0]  # type: ignore[no-any-return]
        if self.name is None:
            raise NoReference(f"no hidden state among {', '.join(kwargs)}")
        return kwargs[self.name]  # type: ignore[no-any-return]

    def _recording(self, position: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            self.calls[position] = args, kwargs
            self.outputs[position] = forward(*args, **kwargs)
            return self.outputs[position]

        return record

    @torch.inference_mode()
    def _run(self) -> torch.Tensor:
        return logits_of(self.model, self.tokens_BT)


@torch.inference_mode()
def logits_of(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model, (batch, tokens, vocabulary)."""
    torch.manual_seed(0)  # Reformer's hashes are drawn
    return model(input_ids=tokens_BT, use_cache=False).logits.clone()  # type: ignore[no-any-return]


def _argument(call: tuple[tuple[Any, ...], dict[str, Any]], name: str | int) -> Any:
    args, kwargs = call
    return args[name] if isinstance(name, int) else kwargs.get(name)


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]


@contextmanager
def _forwards_replaced(
    layers: Sequence[nn.Module], make: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    try:
        for position, layer in enumerate(layers):
            layer.forward = make(position, layer.forward)
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
