"""Models larger than memory: layers stay on disk until they are used, one at a time.

accelerate does the work: its disk offload knows the shards and every renaming that transformers does on loading. Its
hooks would fetch a layer anew for every batch; here a layer is fetched once, pushed over all batches, and dropped, and
the next one is read meanwhile.
"""

from __future__ import annotations

import math
import mmap
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import safetensors
import torch
from accelerate.hooks import AlignDevicesHook, remove_hook_from_module
from accelerate.utils import OffloadedWeightsLoader, named_module_tensors
from torch import nn
from transformers import modeling_utils

from surgeon.backend.model.tensors import DTYPES, TensorReader, tensor_reader
from surgeon.core.checkpoint.checkpoint import Checkpoint, Tensor
from surgeon.core.checkpoint.headers import read_header
from surgeon.core.resources.estimates import SHARE_OF_MEMORY, loaded_bytes
from surgeon.core.structure.structure import Structure

_SHARE_FOR_STATES = 0.3
_STATES_BESIDE_A_LAYER = 32 << 20
_RETURNED_BYTES = 1 << 20


def fits_in_memory(checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether the whole model fits in a safe share of what is free now."""
    size = None if dtype is None else 4 if dtype is torch.float32 else 2
    return loaded_bytes(checkpoint, size) < _free(device) * SHARE_OF_MEMORY


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
    with weights_in_order([layer]) as weights, weights(0):
        yield layer


WeightsInPlace = Callable[[int], AbstractContextManager[nn.Module]]
"""Returns a context in which the layer of that number has its weights."""


@contextmanager
def weights_in_order(layers: Sequence[nn.Module], used: Iterable[int] | None = None) -> Iterator[WeightsInPlace]:
    """Yield what puts the weights of one layer after another in place, for all that are used, in their order.

    While one layer is used, a thread reads the next one from disk: two layers are in memory, and whichever is slower,
    reading or computing, decides how long all takes. Where all weights are in memory, nothing happens.
    """
    order = list(range(len(layers)) if used is None else used)
    following = dict(pairwise(number for number in order if is_streamed(layers[number])))
    with _layer_reader() as reader, ThreadPoolExecutor(1, "surgeon-layer-reader") as thread:
        pending: dict[int, Future[_Fetched]] = {}

        def fetch(number: int) -> None:
            pending[number] = thread.submit(reader.fetch, layers[number])

        @contextmanager
        def weights(number: int) -> Iterator[nn.Module]:
            layer = layers[number]
            if not is_streamed(layer):
                yield layer
                return
            if number not in pending:
                fetch(number)
            fetched = pending.pop(number).result()
            if number in following:
                fetch(following[number])
            with _in_place(layer, fetched):
                del fetched
                yield layer

        try:
            yield weights
        finally:
            reader.stopped = True


_Fetched = dict[tuple[nn.Module, str], torch.Tensor]
"""A layer's weights by the module and the name that they belong to, on the device where they are used."""


def _offloading(layer: nn.Module) -> list[tuple[nn.Module, AlignDevicesHook]]:
    return [
        (module, hook)
        for module in layer.modules()
        if isinstance(hook := getattr(module, "_hf_hook", None), AlignDevicesHook) and hook.offload
    ]


@contextmanager
def _in_place(layer: nn.Module, fetched: _Fetched) -> Iterator[None]:
    hooks = _offloading(layer)
    for module, hook in hooks:
        stored = hook.weights_map
        own = {name: value for (owner, name), value in fetched.items() if owner is module}
        for value in own.values():
            if value.is_cuda:  # written on the reader's stream
                value.record_stream(torch.cuda.current_stream(value.device))
        # What could not be read ahead is read by the hook.
        hook.weights_map = ChainMap(own, stored)
        hook.pre_forward(module)
        hook.weights_map, hook.offload = stored, False
    fetched.clear()
    try:
        yield
    finally:
        for module, hook in hooks:
            hook.offload = True
            hook.post_forward(module, None)


class _LayerReader:
    """Reads layers in a thread of its own: on a CPU into memory that goes back to the system once it is free."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self._headers: dict[str, dict[str, Tensor]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self.stopped = False

    def fetch(self, layer: nn.Module) -> _Fetched:
        """Read all weights of a layer that lie on disk as they were saved; the others are left to their hooks."""
        wanted: dict[tuple[nn.Module, str], tuple[Tensor, torch.dtype | None, torch.device]] = {}
        for module, hook in _offloading(layer):
            for name, value in named_module_tensors(
                module, include_buffers=hook.offload_buffers, recurse=hook.place_submodules, remove_non_persistent=True
            ):
                stored = self._stored(hook.weights_map, name)
                if stored is not None and stored.dtype in DTYPES:
                    floating = value.is_floating_point() and DTYPES[stored.dtype].is_floating_point
                    wanted[module, name] = (stored, value.dtype if floating else None, hook.execution_device)
        self._reader.announce([stored for stored, _, _ in wanted.values()])
        fetched: _Fetched = {}
        for spot, (stored, dtype, place) in wanted.items():
            if self.stopped:
                break
            device = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
            read = self._on_cuda if device.type == "cuda" else self._on_cpu
            fetched[spot] = read(stored, dtype or DTYPES[stored.dtype], device)
        for stream in self._streams.values():
            stream.synchronize()
        return fetched

    def _stored(self, weights: Any, name: str) -> Tensor | None:
        """Return where a weight lies; None where accelerate keeps it in some other way than a safetensors file."""
        files, key = getattr(weights, "dataset", None), f"{getattr(weights, 'prefix', '')}{name}"
        if not isinstance(files, OffloadedWeightsLoader) or key in files.state_dict:
            return None
        entry = files.index.get(key, {})
        file = entry.get("safetensors_file")
        if file is None:
            return None
        if file not in self._headers:
            self._headers[file] = {tensor.name: tensor for tensor in read_header(Path(file)).tensors}
        return self._headers[file].get(entry.get("weight_name", key))

    def _on_cuda(self, stored: Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        pinned = torch.empty(stored.shape, dtype=DTYPES[stored.dtype], pin_memory=True)
        self._reader.read_into(stored, pinned)
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._streams[device]):
            return pinned.to(device, non_blocking=True).to(dtype)

    def _on_cpu(self, stored: Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        value = returned_empty(stored.shape, dtype)
        if dtype is DTYPES[stored.dtype]:
            self._reader.read_into(stored, value)
        else:
            if len(self._buffer) < stored.nbytes:
                self._buffer = returned_empty((stored.nbytes,), torch.uint8)
            part = self._buffer[: stored.nbytes].view(DTYPES[stored.dtype]).view(stored.shape)
            self._reader.read_into(stored, part)
            value.copy_(part)
        return value.to(device)


@contextmanager
def _layer_reader() -> Iterator[_LayerReader]:
    with tensor_reader() as tensors:
        yield _LayerReader(tensors)


def returned_empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return an empty tensor on the CPU whose memory goes back to the system as soon as it is free.

    The C library would keep blocks of up to 32 MB for later: with layers that come and go, 60 MB more with each.
    """
    count = math.prod(shape)
    if count * dtype.itemsize < _RETURNED_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(tuple(shape), dtype=dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))


def without_hooks(layer: nn.Module) -> nn.Module:
    """Return a copied layer that keeps the weights it holds now."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        if isinstance(hook, AlignDevicesHook):
            hook.offload = False
    remove_hook_from_module(layer, recurse=True)
    return layer
