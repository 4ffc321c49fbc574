"""Masks over single weights as bits, and training inside them.

One bit for each weight, the first in the lowest bit of the first byte: a mask takes a 32nd of float32 weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from surgeon.backend.course import GradientMask
from surgeon.backend.learning_bench import LearningBench
from surgeon.backend.tensors import tensor_reader
from surgeon.core.draft import Draft
from surgeon.core.learned import result_tensors
from surgeon.errors import LearningError

_WEIGHTS_OF_BITS = 1 << torch.arange(8)
_BITS_OF_BYTES = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
_INSIDE, _OUTSIDE = (  # the eight bools of each byte, as one int64: looking up is one gather per byte
    bits.to(torch.uint8).contiguous().view(torch.int64).squeeze(1) for bits in (_BITS_OF_BYTES, 1 - _BITS_OF_BYTES)
)


def pack(mask_N: torch.Tensor) -> torch.Tensor:
    """Return bools as bits, uint8, (N / 8 rounded up); what fills the last byte is 0."""
    missing = -len(mask_N) % 8
    padded = torch.nn.functional.pad(mask_N.to(torch.uint8), (0, missing)).view(-1, 8)
    return (padded * _WEIGHTS_OF_BITS.to(mask_N.device, torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, shape: torch.Size, *, outside: bool = False) -> torch.Tensor:
    """Return bits as bools of a shape; with `outside` their opposite."""
    table = (_OUTSIDE if outside else _INSIDE).to(packed.device)
    return table[packed.int()].view(torch.bool)[: shape.numel()].view(shape)


class WeightMask:
    """Keeps gradients inside a mask. AdamW is elementwise, so a weight whose gradient is always 0 never moves.

    The moments of the others come from their own gradients, so zeroing gradients after they are clipped is the paper's
    masked update, as long as no weight decay moves weights by itself.
    """

    def __init__(self, packed: Mapping[str, torch.Tensor]) -> None:
        """Keep the bits where the gradients are."""
        self._packed = packed

    def __call__(self, name: str, gradient: torch.Tensor) -> None:
        """Set the entries outside the mask to zero."""
        gradient.masked_fill_(unpack(self._packed[name], gradient.shape, outside=True), 0.0)


def masked(bench: LearningBench, draft: Draft, device: torch.device) -> tuple[LearningBench, GradientMask | None]:
    """Return what is left to train within a draft's mask: tensors that it leaves out are frozen; and the mask.

    Raises:
        LearningError: nothing is left.
    """
    if draft.mask is None:
        return bench, None
    stored = result_tensors(draft.mask)
    with tensor_reader() as reader:
        read = {name: reader.read(stored[name]) for name in bench.parameters if name in stored}
    packed = {name: bits.to(device) for name, bits in read.items() if bits.any()}
    for name, parameter in bench.parameters.items():
        parameter.requires_grad = name in packed
    if not packed:
        raise LearningError("every weight inside the mask is frozen", where="train", hint="freeze less, or mask later")
    parameters = {name: bench.parameters[name] for name in packed}
    return replace(bench, parameters=parameters), WeightMask(packed)
