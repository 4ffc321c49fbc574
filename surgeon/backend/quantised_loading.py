"""A base that is held in NF4 or int8 by bitsandbytes while it is learned and scored on; its files stay as they are."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.plan.draft import Draft, Learned, Original
from surgeon.errors import ArchitectureError, UsageError

_WHERE = "base.load_in"


def loaded_in(draft: Draft) -> str | None:
    """Return what the recipe has the base's matrices held in, None for their own dtype.

    Once a layer's weights come from a result, such as that of merging adapters, all are in their own dtype.

    Raises:
        ArchitectureError: weights would have to be calculated from quantised ones.
    """
    load_in = draft.structure.checkpoint.load_in
    sources = [layer.source for layers in draft.stacks.values() for layer in layers]
    if load_in is None or draft.learned or any(isinstance(source, Learned) for source in sources):
        return None
    calculated = next((source for source in sources if not isinstance(source, Original)), None)
    if calculated is not None:
        raise ArchitectureError(
            f"a layer's weights would be calculated ({type(calculated).__name__.lower()}) from those held in {load_in}",
            where=_WHERE, allowed="prune, reorder and expand that copies layers",
            hint="leave load_in out, or export the edited model and make that the base",
        )  # fmt: skip
    return load_in


def bitsandbytes_config(load_in: str, checkpoint: Checkpoint, dtype: torch.dtype | None) -> BitsAndBytesConfig:
    """Return how transformers is to load the matrices; `dtype` is what products are taken in.

    Raises:
        UsageError: the package is missing.   ArchitectureError: the checkpoint is quantised already.
    """
    if find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{load_in} needs the package bitsandbytes", where=_WHERE, hint="pip install 'surgeon[quantized]'"
        )
    if checkpoint.config.get("quantization_config"):
        raise ArchitectureError("the checkpoint is stored quantised already", where=_WHERE, hint="leave load_in out")
    # It tells at each product that its int8 kernels take float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    make: Any = BitsAndBytesConfig
    if load_in == "int8":
        made: BitsAndBytesConfig = make(load_in_8bit=True)
    else:
        made = make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16)
    return made


def keep_packing(model: nn.Module) -> None:
    """Have 4-bit layers compute the same in evaluation as in training.

    On a CPU that multiplies in bfloat16 the first pass without gradients would pack a layer's codes anew, in place, and
    round their scales: what is computed from then on, in training too, would depend on what had been computed before.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def as_held(weight: torch.Tensor, load_in: str) -> torch.Tensor:
    """Return a matrix (out, in) with the values that it has while it is held quantised, float32."""
    functional: Any = import_module("bitsandbytes.functional")

    if load_in == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        found: torch.Tensor = codes.float() * scales.float()[:, None] / 127
        return found
    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    values: torch.Tensor = functional.dequantize_4bit(packed, state)
    return values.float()
