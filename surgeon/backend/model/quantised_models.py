"""Quantised models in memory: whether transformers knows that they are, and whether weights are what they seem."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.quantizers.auto import AutoHfQuantizer

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.structure.companions import packed_weights
from surgeon.core.structure.quantisation import Quantisation, read_quantisation
from surgeon.core.structure.structure import Structure
from surgeon.errors import ArchitectureError

_MATRIX = 2
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def unread_quantisation(checkpoint: Checkpoint) -> Quantisation | None:
    """Return how a checkpoint's weights are quantised where transformers does not know it, else None.

    It looks for a config that names a method it has; for anything else it loads packed numbers as if they were weights.
    """
    quantisation = read_quantisation(checkpoint)
    return None if quantisation is None or (quantisation.declared and _is_known(checkpoint.path)) else quantisation


def _is_known(path: Path) -> bool:
    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, KeyError, OSError):
        return True  # whoever loads it says what is wrong
    said = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    quantiser: Any = AutoHfQuantizer
    try:
        return bool(quantiser.supports_quant_method(said)) if isinstance(said, dict) else said is not None
    except ValueError:
        return False


def known_quantisation(checkpoint: Checkpoint, device: torch.device) -> Quantisation | None:
    """Return how the weights of a checkpoint are quantised that transformers can load.

    Refuses one whose quantisation it does not know, or reads otherwise than it is meant.

    Raises:
        ArchitectureError: it names the config field, the file or the tensor that says how it is quantised.
    """
    quantisation = unread_quantisation(checkpoint)
    if quantisation is not None:
        raise quantisation.refusal("transformers does not know it: it would compute without their scales")
    quantisation = read_quantisation(checkpoint)
    if quantisation is None or quantisation.method != "fp8" or quantisation.block_size is None or device.type != "cpu":
        return quantisation
    for name in ragged_blocks(checkpoint, quantisation.block_size):
        rows, columns = quantisation.block_size
        raise ArchitectureError(
            f"is not made of whole blocks of {rows}x{columns}; on a CPU transformers dequantises it in other ones",
            where=f"tensor {name!r}",
            allowed="a GPU that computes in FP8",
            hint="dequantise the checkpoint first",
        )
    return quantisation


def ragged_blocks(checkpoint: Checkpoint, block: tuple[int, int]) -> Iterable[str]:
    """Yield FP8 weights that end within a block, where more than one scale spans that dimension."""
    types = {name: one for shard in checkpoint.shards for name, one in zip(shard.names, shard.types, strict=True)}
    for weight in packed_weights(types).values():
        shape = types[weight.stored].shape
        scaled = any(kind.endswith("scale_inv") for kind in weight.parts)
        if scaled and any(size > step and size % step for size, step in zip(shape[-2:], block, strict=False)):
            yield weight.stored


def cast_dequantised(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Give a model that was dequantised on loading one dtype: transformers leaves what was not quantised as stored.

    A model that is quantised in memory stays as it is.
    """
    wide = {name: one for name, one in model.named_parameters() if one.is_floating_point() and not one.is_meta}
    if dtype is None or any(one.dtype not in _FLOATS or hasattr(one, "quant_state") for one in wide.values()):
        return
    kept = [
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    ]
    for name, parameter in wide.items():
        if parameter.dtype != dtype and not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)


def require_values(structure: Structure, layers: Iterable[nn.Module], what: str) -> None:
    """Refuse layers whose matrices in memory are packed: `what` would take the packed numbers for weights.

    Raises:
        ArchitectureError: it names the method, and what says that the weights are quantised.
    """
    quantisation, load_in = structure.quantisation, structure.checkpoint.load_in
    if quantisation is None and load_in is None:
        return
    for layer in layers:
        for name, parameter in layer.named_parameters():
            packed = parameter.dtype not in _FLOATS or hasattr(parameter, "quant_state")
            if parameter.dim() < _MATRIX or not packed:
                continue
            if quantisation is None:
                raise ArchitectureError(
                    f"{what} needs the values of {name!r}, which are held in {load_in}", where="base.load_in",
                    allowed="scores of stored weights, activations and losses", hint="leave load_in out for it",
                )  # fmt: skip
            raise quantisation.refusal(
                f"{what} needs the values of {name!r}, which are packed in memory",
                "scores of activations and losses",
            )
