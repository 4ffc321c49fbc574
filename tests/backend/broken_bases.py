"""Copies of a sound model that are not what they say: tensors gone, renamed, or of another shape."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Fault:
    """What is done to the tensors; `first` is what is then missing or does not fit, `hint` a part of the repair."""

    change: Callable[[Tensors], Tensors]
    first: str
    hint: str


def _without(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: one for name, one in tensors.items() if not re.fullmatch(pattern, name)}


def _renamed(pattern: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, new, name): one for name, one in tensors.items()}


def _cut(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensors[name][:-1].clone()}


_ONE = "model.layers.1.self_attn.q_proj.weight"
FAULTS = {
    "no head": Fault(_without(r"lm_head\.weight"), "lm_head.weight", "tie_word_embeddings"),
    "one matrix gone": Fault(_without(re.escape(_ONE)), _ONE, "save them again from the whole model"),
    "a projection gone": Fault(
        _without(r".*\.q_proj\.weight"), "model.layers.0.self_attn.q_proj.weight and 1 more", "again"
    ),
    "the embedding gone": Fault(_without(r"model\.embed_tokens\.weight"), "model.embed_tokens.weight", "again"),
    "compiled": Fault(_renamed("^", "_orig_mod."), "lm_head.weight and", "without '_orig_mod.', as torch.compile"),
    "data parallel": Fault(_renamed("^", "module."), "lm_head.weight and", "without 'module.'"),
    "another shape": Fault(_cut(_ONE), f"{_ONE} has shape", "of different models"),
}


def broken(sound: Path, fault: Fault, place: Path) -> Path:
    """Write a copy of a model of one file with a fault, and return its directory."""
    shutil.copytree(sound, place)
    tensors = fault.change(load_file(sound / "model.safetensors"))
    save_file(dict(tensors), place / "model.safetensors", {"format": "pt"})
    return place
