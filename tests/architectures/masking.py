"""What the logits must be after a cut, told without surgeon's code: the untouched base, with what goes masked out.

Experts: the router's logits of those that go are -inf where it chooses by them alone, and the biases that correct the
choice are -inf where it has some. Neurons and heads: the inputs that they are to the matrix behind them are zero. A
sublayer: its output is zero. Everything is found by names and sizes of the loaded model's own modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

EXPERTS, NEURONS, HEADS, KV_HEADS, HEAD_DIM = 4, 48, 4, 2, 8
"""Of every tiny model; see `settings.SMALL`."""
Gone = Mapping[int, Sequence[int]]
"""Numbers of what goes, by the position of the layer."""

_CORRECTION = re.compile(r"(?:expert_bias|correction_bias)$")
_OUT = re.compile(r"(?:^|\.)(?:o_proj|out_proj|dense|c_proj|wo|out_lin|Wo)(?:\.linear)?$")
_ATTENTION_NAMES = (
    "self_attn", "self_attention", "attention", "attn", "linear_attn", "mamba", "temporal_block", "conv", "mixer",
    "multi_head_attention", "mlstm_layer",
)  # fmt: skip
_MLP_NAMES = ("mlp", "mlps", "feed_forward", "ffn", "mlp_block", "block_sparse_moe", "shared_mlp", "moe", "ff")
_INNER: Mapping[str, tuple[str, str]] = {
    "BloomBlock": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "CpmAntTransformerBlock": ("self_att.self_attention.attention_out", "ffn.ffn.w_out"),
    "DbrxBlock": ("norm_attn_norm.attn", "ffn"),
    "MptBlock": ("attn", "ffn.down_proj"),
}
"""Where attention and MLP are of layers whose modules of these names add the residual themselves, or hold more."""


class NoMask(Exception):
    """What goes cannot be found in the loaded model."""


class _Routers(TorchFunctionMode):
    """Puts -inf in place of the logits of experts that go, wherever a router's weight is multiplied with."""

    def __init__(self, gone: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self.gone, self.seen = gone, set[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and id(args[1]) in self.gone:
            self.seen.add(id(args[1]))
            found = found.clone()
            found[..., list(self.gone[id(args[1])])] = -torch.inf
        return found


@contextmanager
def without_experts(layers: Sequence[nn.Module], gone: Gone, experts: int = EXPERTS) -> Iterator[None]:
    """Mask the choice of experts.

    Raises:
        NoMask: a layer's router is not found, or never asked.
    """
    routers: dict[int, Sequence[int]] = {}
    biases: list[tuple[torch.Tensor, torch.Tensor]] = []
    for position, numbers in gone.items():
        corrections = [tensor for name, tensor in _tensors(layers[position]) if _CORRECTION.search(name)]
        for tensor in corrections:
            biases.append((tensor, tensor.clone()))
            tensor.data[..., list(numbers)] = -torch.inf
        routers[id(_router(layers[position], experts))] = numbers
    mode = _Routers(routers)
    try:
        with mode:
            yield
    finally:
        for tensor, before in biases:
            tensor.data.copy_(before)
    if mode.seen != set(routers):
        raise NoMask(f"{len(mode.seen)} of {len(routers)} routers were asked")


def _tensors(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*layer.named_parameters(), *layer.named_buffers()]


def _router(layer: nn.Module, experts: int) -> nn.Parameter:
    """Return the matrix beside a layer's experts that has a row for each of them."""
    inner = [name.partition("experts")[0] for name, _ in layer.named_parameters() if "experts." in name]
    found = [
        parameter
        for name, parameter in layer.named_parameters()
        if any(name.startswith(prefix) for prefix in inner)
        and "expert" not in name
        and parameter.dim() == 2
        and experts <= parameter.shape[0] <= experts + 2
    ]
    if len(found) != 1:
        raise NoMask(f"{len(found)} routers in a layer")
    return found[0]


@contextmanager
def without_neurons(layers: Sequence[nn.Module], gone: Gone) -> Iterator[None]:
    """Give the matrices that lead out of MLPs zeros from the neurons that go."""
    with ExitStack() as stack:
        for position, numbers in gone.items():
            found = [module for module in layers[position].modules() if _inputs(module) == NEURONS]
            if len(found) != 1:
                raise NoMask(f"{len(found)} matrices with {NEURONS} inputs in a layer")
            stack.enter_context(found[0].register_forward_pre_hook(_zeroing(list(numbers))))
        yield


@contextmanager
def without_heads(layers: Sequence[nn.Module], gone: Gone) -> Iterator[None]:
    """Give the output matrices of attention zeros from the query heads of the key-value heads that go."""
    with ExitStack() as stack:
        for position, numbers in gone.items():
            found = [
                module
                for name, module in layers[position].named_modules()
                if _OUT.search(name) and _inputs(module) == HEADS * HEAD_DIM and "mlp" not in name
            ]
            if len(found) != 1:
                raise NoMask(f"{len(found)} outputs of attention in a layer")
            keys = [
                module
                for name, module in layers[position].named_modules()
                if re.search(r"(?:^|\.)k_proj(?:\.linear)?$", name) and isinstance(module, nn.Linear)
            ]
            count = keys[0].out_features // HEAD_DIM if keys else KV_HEADS
            width = HEADS // int(count) * HEAD_DIM
            columns = [number * width + at for number in numbers for at in range(width)]
            stack.enter_context(found[0].register_forward_pre_hook(_zeroing(columns)))
        yield


@contextmanager
def without_sublayer(layers: Sequence[nn.Module], position: int, sublayer: str) -> Iterator[None]:
    """Have a sublayer put out zeros."""
    with ExitStack() as stack:
        for module in _sublayer(layers[position], sublayer):
            stack.enter_context(module.register_forward_hook(_zero_output))
        yield


def _sublayer(layer: nn.Module, sublayer: str) -> list[nn.Module]:
    """Return the modules whose outputs together are a sublayer's.

    Raises:
        NoMask: none is known.
    """
    inner = _INNER.get(type(layer).__name__)
    if inner:
        return [layer.get_submodule(inner[sublayer == "mlp"])]
    children = dict(layer.named_children())
    found = [children[name] for name in (_MLP_NAMES if sublayer == "mlp" else _ATTENTION_NAMES) if name in children]
    if not found and sublayer == "mlp":
        found = [children[name] for name in ("fc2", "output", "mixer") if name in children][:1]
    if not found:
        raise NoMask(f"no module is {sublayer} among {', '.join(children)}")
    parts = [part for module in found for part in (module if isinstance(module, nn.ModuleList) else [module])]
    # BERT's add the residual in a module called `output`.
    return [getattr(dict(part.named_children()).get("output", part), "dense", part) for part in parts]


def _inputs(module: nn.Module) -> int:
    if type(module).__name__ == "Conv1D":
        weight: Any = module.weight
        return int(weight.shape[0])
    return module.in_features if isinstance(module, nn.Linear) else 0


def _zeroing(columns: list[int]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        masked = args[0].clone()
        masked[..., columns] = 0
        return (masked, *args[1:])

    return hook


def _zero_output(_module: nn.Module, _args: object, output: Any) -> Any:
    if isinstance(output, tuple | list):
        return type(output)([torch.zeros_like(output[0]), *output[1:]])
    return torch.zeros_like(output)
