"""Models larger than memory: layers stay on disk until they are used, one at a time.

accelerate does the work: its disk offload knows the shards and every renaming that transformers does on loading. Its
hooks would fetch a layer anew for every batch; here a layer is fetched once, pushed over all batches, and dropped.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import safetensors
import torch
from accelerate.hooks import AlignDevicesHook, remove_hook_from_module
from torch import nn
from transformers import modeling_utils

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.structure.structure import Structure

_SHARE_OF_MEMORY = 0.6
_SHARE_FOR_STATES = 0.3
_STATES_BESIDE_A_LAYER = 32 << 20
_VALUES = {"U8": 2, "I8": 2, "I32": 8, "U32": 8}
"""How many weights of four bits an integer holds, once they are dequantised; models that are not have next to none."""
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_USUAL_MMAP_THRESHOLD = 32 << 20  # what glibc raises it to by itself as large blocks are freed


def fits_in_memory(checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether the whole model fits in a safe share of what is free now."""
    grown = 4 if dtype is torch.float32 else 2
    values = sum(count * _VALUES.get(kind, 1) for kind, count in checkpoint.dtype_parameters.items())
    wanted = max(values * grown, checkpoint.nbytes) if dtype is not None else checkpoint.nbytes
    return wanted < _free(device) * _SHARE_OF_MEMORY


def room_for_states(device: torch.device, *, streamed: bool) -> int:
    """Return how many bytes of hidden states may stay in memory: next to none where not even the model may."""
    return _STATES_BESIDE_A_LAYER if streamed else int(_free(device) * _SHARE_FOR_STATES)


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(psutil.virtual_memory().available)


def offload_map(model: nn.Module, structure: Structure, device: torch.device) -> dict[str, str]:
    """Return a device map that leaves the layers of the default stack on disk and puts everything else on `device`.

    `model` is a skeleton without weights, to name its modules.
    """
    from surgeon.backend.model.layer_list import layer_list

    layers = layer_list(model, structure.stack())
    prefix = next(name for name, module in model.named_modules() if module is layers)
    offloaded = {f"{prefix}.{position}": "disk" for position in range(len(layers))}
    kept: dict[str, str] = {}
    _keep(model, "", prefix, kept, str(device))
    return {**kept, **offloaded}


def _keep(module: nn.Module, name: str, prefix: str, kept: dict[str, str], device: str) -> None:
    """Name every largest module that does not contain the layers."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if full == prefix:
            continue
        if prefix.startswith(f"{full}."):
            _keep(child, full, prefix, kept, device)
        else:
            kept[full] = device
    for parameter_name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        kept[f"{name}.{parameter_name}" if name else parameter_name] = device


@contextmanager
def unmapped_reading() -> Iterator[None]:
    """Have transformers read shards tensor by tensor while it loads.

    It looks at every tensor, those that stay on disk too, through one mapping of the whole file; each page it has
    touched would count as resident memory until the last one is read. It has a way without, but no argument for it.
    """
    loading: Any = modeling_utils
    mapped = loading.safe_open

    def by_reading(*args: Any, **settings: Any) -> Any:
        return mapped(*args, **{**settings, "backend": "pread"})

    loading.safe_open = by_reading if _knows_backends() else mapped
    try:
        yield
    finally:
        loading.safe_open = mapped


def _knows_backends() -> bool:
    return tuple(map(int, safetensors.__version__.split(".")[:2])) >= (0, 8)


def is_streamed(layer: nn.Module) -> bool:
    """Whether any of a layer's weights are on disk now."""
    return any(parameter.is_meta for parameter in layer.parameters())


@contextmanager
def weights_of(layer: nn.Module) -> Iterator[nn.Module]:
    """Yield a layer with its weights in place; nothing happens where they already are."""
    hooks = [
        (module, hook)
        for module in layer.modules()
        if isinstance(hook := getattr(module, "_hf_hook", None), AlignDevicesHook) and hook.offload
    ]
    for module, hook in hooks:
        hook.pre_forward(module)
        hook.offload = False
    try:
        yield layer
    finally:
        for module, hook in hooks:
            hook.offload = True
            hook.post_forward(module, None)


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Have tensors given back to the system as soon as they are freed, where the C library would keep them.

    glibc keeps freed blocks of up to 32 MB for later: with layers that come and go, 60 MB more with each.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:  # musl has none, and keeps nothing
        yield
        return
    set_option(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)


def without_hooks(layer: nn.Module) -> nn.Module:
    """Return a copied layer that keeps the weights it holds now."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        if isinstance(hook, AlignDevicesHook):
            hook.offload = False
    remove_hook_from_module(layer, recurse=True)
    return layer
