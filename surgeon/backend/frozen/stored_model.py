"""Loads a base for training: every tensor in the dtype that it is stored in, all else as for float32."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from surgeon.backend.frozen.frozen_modules import Reading
from surgeon.backend.model.loading import load_model
from surgeon.backend.model.tensors import DTYPES, TensorReader
from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.structure.structure import Structure

_NARROW = ("BF16", "F16")


def load_as_stored(structure: Structure, device: torch.device, held_in: BitsAndBytesConfig | None = None) -> nn.Module:
    """Return the base, its weights in the dtypes they are stored in.

    What a model computes from its config, such as scales of embeddings, is float32: it is built as if the weights were.
    """
    with _loading_in(_dtypes_by_pattern(structure)):
        return load_model(structure.checkpoint, torch.float32, device, held_in=held_in).model


def majority_dtype(structure: Structure) -> str:
    """Return the dtype that most of a checkpoint's floating-point numbers are stored in."""
    counts: Counter[str] = Counter()
    for tensor in structure.checkpoint.tensors.values():
        counts[tensor.dtype] += tensor.nbytes if tensor.dtype in FLOATS else 0
    return counts.most_common(1)[0][0]


def readings(structure: Structure, reader: TensorReader, device: torch.device) -> dict[str, Reading]:
    """Return, by name in the loaded model, how to read each tensor of a layer from disk.

    Without those that transformers gives another name, and so maybe another form, when it loads them.
    """
    if structure.family.renamed:
        return {}
    prefixes = tuple(f"{stack.prefix}." for stack in structure.stacks.values())
    stored = [one for name, one in structure.checkpoint.tensors.items() if name.startswith(prefixes)]
    return {
        one.name: partial(_read, reader, one, device)
        for one in stored
        if one.dtype in FLOATS and structure.memory_names([one.name]) == [one.name]
    }


def _read(reader: TensorReader, stored: Tensor, device: torch.device) -> torch.Tensor:
    return reader.read(stored).to(device)


def _dtypes_by_pattern(structure: Structure) -> dict[str, torch.dtype]:
    """Return dtypes by regular expression of the loaded name; empty where all is stored in float32, or cannot be told.

    Names may change on loading, in ways that are not always known: then every tensor must be stored alike.
    """
    tensors = structure.checkpoint.tensors.values()
    majority = majority_dtype(structure)
    others = [one for one in tensors if one.dtype in FLOATS and one.dtype != majority]
    if majority not in _NARROW or (others and structure.family.renamed):
        return {}
    found = {}
    for one in others:
        (name,) = structure.memory_names([one.name])
        found[f"^{re.escape(name)}$"] = torch.float32 if one.dtype not in _NARROW else DTYPES[one.dtype]
    return {**found, "^": DTYPES[majority]}


@contextmanager
def _loading_in(dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Have transformers load tensors in certain dtypes, whatever it is told of the model's.

    It does so itself for modules that must stay in float32, but has no argument for it. Where it has no such plan, all
    is loaded in float32 and takes more memory.
    """
    plan = "_get_dtype_plan"
    if not dtypes or not hasattr(PreTrainedModel, plan):
        yield
        return
    before = getattr(PreTrainedModel, plan)
    setattr(PreTrainedModel, plan, lambda _model, _dtype: dict(dtypes))
    try:
        yield
    finally:
        setattr(PreTrainedModel, plan, before)
