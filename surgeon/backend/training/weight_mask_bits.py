"""Masks over single weights as bits, and training inside them.

One bit for each weight, the first in the lowest bit of the first byte: a mask takes a 32nd of float32 weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from surgeon.backend.model.tensors import tensor_reader
from surgeon.core.plan.learned_results import result_tensors

_WEIGHTS_OF_BITS = 1 << torch.arange(8)
_BITS_OF_BYTES = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
_BOOLS = _BITS_OF_BYTES.to(torch.uint8).contiguous().view(torch.int64).squeeze(1)
"""The eight bools of each byte, as one int64: looking them up is one gather per byte."""
_WORDS = _BITS_OF_BYTES.neg().to(torch.int32)
"""For each byte eight words, all ones or all zeros: what a float's bits are and-ed with to keep it or make it 0."""
_CHUNK = {"cpu": 1 << 18}
"""Weights whose words stay in a CPU's cache; elsewhere it is launches that cost."""
_LARGE_CHUNK = 1 << 27


def pack(mask_N: torch.Tensor) -> torch.Tensor:
    """Return bools as bits, uint8, (N / 8 rounded up); what fills the last byte is 0."""
    missing = -len(mask_N) % 8
    padded = torch.nn.functional.pad(mask_N.to(torch.uint8), (0, missing)).view(-1, 8)
    return (padded * _WEIGHTS_OF_BITS.to(mask_N.device, torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return bits as bools of a shape."""
    return _BOOLS.to(packed.device)[packed.int()].view(torch.bool)[: shape.numel()].view(shape)


class WeightMask:
    """Keeps gradients inside a mask. AdamW is elementwise, so a weight whose gradient is always 0 never moves.

    The moments of the others come from their own gradients, so zeroing gradients after they are clipped is the paper's
    masked update, as long as no weight decay moves weights by itself.
    """

    def __init__(self, packed: Mapping[str, torch.Tensor]) -> None:
        """Keep the bits, which lie where the gradients are."""
        self._packed = packed
        self._words = {device: _WORDS.to(device) for device in {bits.device for bits in packed.values()}}

    def __call__(self, name: str, gradient: torch.Tensor) -> None:
        """Set the entries outside the mask to zero, also where they are not finite."""
        packed = self._packed[name]
        if gradient.dtype != torch.float32 or not gradient.is_contiguous():
            gradient.masked_fill_(~unpack(packed, gradient.shape), 0.0)
            return
        words, chunk = self._words[packed.device], _CHUNK.get(packed.device.type, _LARGE_CHUNK)
        floats = torch.split(gradient.view(-1).view(torch.int32), chunk)
        for part, bits in zip(floats, torch.split(packed, chunk // 8), strict=True):
            part.bitwise_and_(words.index_select(0, bits.int()).view(-1)[: len(part)])


def bits_of(address: str, names: Collection[str], device: torch.device) -> dict[str, torch.Tensor]:
    """Return the bits of a mask by name in the result, of those of `names` of which any weight lies inside it."""
    stored = result_tensors(address)
    with tensor_reader() as reader:
        read = {name: reader.read(stored[name]) for name in names if name in stored}
    return {name: bits.to(device) for name, bits in read.items() if bits.any()}
