"""Values of quantised weights, tensor by tensor, for the formats in which they are plain arithmetic.

FP8 with a scale for blocks (DeepSeek-V3, arXiv:2412.19437), for rows or for the whole; MXFP4 (OCP Microscaling Formats
1.0); bitsandbytes' NF4 (arXiv:2305.14314), with scales that are quantised in turn too. All others are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch

from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.checkpoint.tensors import TensorType
from surgeon.core.structure.companions import PackedWeight, companions_among
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.quantisation import Quantisation
from surgeon.core.structure.structure import Structure

Read = Callable[[str], torch.Tensor]
"""Returns a tensor of a layer by its name within it."""
_Dequantise = Callable[[PackedWeight, Read, Quantisation], torch.Tensor]
_EIGHT_BIT_FLOATS = ("F8_E4M3", "F8_E5M2")
_OF_ACTIVATIONS = ("input_", "activation_", "output_")
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_NF4_STATE = "quant_state.bitsandbytes__nf4"
_NF4_PARTS = frozenset({"absmax", "quant_map", _NF4_STATE})


def require_readable(structure: Structure, layouts: Sequence[Layout]) -> None:
    """Refuse layers with a weight of which no values are known.

    Raises:
        ArchitectureError: it names the method, and what says that the weights are quantised.
    """
    quantisation = structure.quantisation
    if quantisation is None:
        return
    for layout in layouts:
        packed = structure.packed_weights(layout)
        known = companions_among(layout.types) | {weight.stored for weight in packed.values()}
        odd = [name for name, one in layout.types.items() if _is_unknown(name, one, known)]
        odd += [weight.stored for weight in packed.values() if not is_readable(weight, layout.types, quantisation)]
        if odd:
            raise quantisation.refusal(
                f"the values of {odd[0]!r} are not known",
                "scores of activations and losses, where transformers loads the model; and FP8, MXFP4 and NF4",
            )


def _is_unknown(name: str, one: TensorType, known: frozenset[str]) -> bool:
    return one.dtype not in (*FLOATS, "BOOL") and one.parameters > 1 and name not in known


def dequantised(
    weight: PackedWeight, types: Mapping[str, TensorType], quantisation: Quantisation, read: Read
) -> torch.Tensor:
    """Return the values of a weight in float32; for layers of which `require_readable` has been asked."""
    way = _way(weight, types, quantisation)
    assert way is not None, "require_readable refuses all others"
    return way(weight, read, quantisation)


def is_readable(weight: PackedWeight, types: Mapping[str, TensorType], quantisation: Quantisation) -> bool:
    """Whether the values of a weight are known."""
    return _way(weight, types, quantisation) is not None


def _way(weight: PackedWeight, types: Mapping[str, TensorType], quantisation: Quantisation) -> _Dequantise | None:
    """Return what gives a weight's values, by shapes and dtypes alone."""
    stored = types[weight.stored]
    if "transform_config" in quantisation.settings:
        return None  # the weights are rotated besides
    parts = {kind: types[name] for kind, name in weight.parts.items() if not kind.startswith(_OF_ACTIVATIONS)}
    if stored.dtype in _EIGHT_BIT_FLOATS and len(parts) == 1:
        ((kind, scale),) = parts.items()
        return _fp8_way(kind, stored.shape, scale, quantisation)
    if weight.stored.endswith("_blocks") and parts.keys() == {"scales"}:
        whole = stored.dtype == parts["scales"].dtype == "U8" and stored.shape[:-1] == parts["scales"].shape
        return _mxfp4 if whole else None
    if _NF4_PARTS <= parts.keys() <= _NF4_PARTS | {"nested_absmax", "nested_quant_map"}:
        return _nf4
    return None


def _fp8_way(kind: str, shape: tuple[int, ...], scale: TensorType, quantisation: Quantisation) -> _Dequantise | None:
    if scale.dtype not in (*FLOATS, "F8_E8M0") or kind not in (
        "scale",
        "scale_inv",
        "weight_scale",
        "weight_scale_inv",
    ):
        return None
    if scale.parameters == 1 or scale.shape == shape[:1] or _spreads(scale.shape, shape):
        return _scaled
    block = quantisation.block_size
    grid = (*shape[:-2], *(-(-size // step) for size, step in zip(shape[-2:], block or (), strict=False)))
    return _scaled_blocks if block is not None and scale.shape == grid else None


def _spreads(scale: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(scale) == len(shape) and all(one in (1, size) for one, size in zip(scale, shape, strict=True))


def _scale_of(weight: PackedWeight, read: Read) -> torch.Tensor:
    (name,) = (name for kind, name in weight.parts.items() if not kind.startswith(_OF_ACTIVATIONS))
    return read(name).float()


def _scaled(weight: PackedWeight, read: Read, quantisation: Quantisation) -> torch.Tensor:
    del quantisation
    values, scale = read(weight.stored).float(), _scale_of(weight, read)
    if scale.numel() == 1:
        return values * scale.reshape(())
    return values * (scale if scale.dim() == values.dim() else scale.reshape(-1, *(1,) * (values.dim() - 1)))


def _scaled_blocks(weight: PackedWeight, read: Read, quantisation: Quantisation) -> torch.Tensor:
    values, scale = read(weight.stored).float(), _scale_of(weight, read)
    block = quantisation.block_size
    assert block is not None, "_fp8_way has looked"
    for axis, size in zip((-2, -1), block, strict=True):
        scale = scale.repeat_interleave(size, dim=axis).narrow(axis, 0, values.shape[axis])
    return values * scale


def _mxfp4(weight: PackedWeight, read: Read, quantisation: Quantisation) -> torch.Tensor:
    """Two values a byte, the low half first; one power of two for 32 of them, with an exponent that counts from 127."""
    del quantisation
    blocks, exponents = read(weight.stored), read(weight.parts["scales"]).int() - 127
    halves = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).long()
    return torch.ldexp(torch.tensor(_FP4)[halves], exponents[..., None]).flatten(-2)


def _nf4(weight: PackedWeight, read: Read, quantisation: Quantisation) -> torch.Tensor:
    """Two values a byte, the high half first; codes stand in a table, and each block has its largest absolute value."""
    del quantisation
    state = json.loads(bytes(read(weight.parts[_NF4_STATE]).tolist()))
    packed = read(weight.stored).contiguous().view(torch.uint8).flatten()  # stored as bytes, or as if it were floats
    halves = torch.stack((packed >> 4, packed & 15), dim=-1).flatten().long()
    largest = read(weight.parts["absmax"])
    if "nested_absmax" in weight.parts:
        codes = read(weight.parts["nested_quant_map"]).float()[largest.long()]
        outer = read(weight.parts["nested_absmax"]).float().repeat_interleave(state["nested_blocksize"])
        largest = codes * outer[: len(codes)] + state["nested_offset"]
    values = read(weight.parts["quant_map"]).float()[halves]
    scale = largest.float().repeat_interleave(state["blocksize"])[: len(values)]
    shape = state["shape"]
    return (values * scale)[: torch.Size(shape).numel()].reshape(shape)
