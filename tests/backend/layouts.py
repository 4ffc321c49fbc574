"""Random directories of weights: which tensors are there, under which names, in which files, and what an index says."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMED = "weights.safetensors"
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
_MARKERS: tuple[Mapping[str, Any] | None, ...] = (
    *[None] * 14, _FP8, {"quant_method": "bitsandbytes", "load_in_4bit": True}, {},
    {"quant_method": "gptq", "bits": 4}, {"quant_method": "compressed-tensors"}, {"quant_method": "nobody knows"},
)  # fmt: skip
_PREFIXES = (*[""] * 12, "_orig_mod.", "module.", "model.", "base_model.model.")
_INDEX = ("right",) * 14 + ("no index", "copy", "overlay", "moved", "unlisted", "listed, not there", "outside", "stale",
                           "one file gone", "no metadata", "broken", "twice")  # fmt: skip
_TENSORS = ("right",) * 14 + ("gone", "gone from all", "empty", "cut", "partly renamed", "foreign", "junk")
_OTHERS = (*[""] * 8, "mtp.safetensors", "consolidated.safetensors", "pytorch_model.bin", "model.fp16.safetensors",
           "shard-00000-model-00000-of-00001.safetensors", "adapter_model.safetensors")  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What is written. `seed` decides which tensors and files the faults come to."""

    kind: str
    shards: int
    index: str
    tensors: str
    prefix: str
    marker: Mapping[str, Any] | None
    packed: bool
    tied: bool
    head: bool
    dtype: torch.dtype
    other: str
    seed: int


LAYOUTS = st.builds(
    Layout,
    kind=st.sampled_from(["single", "shards", "shards", "both", "named", "named index"]),
    shards=st.integers(1, 4),
    index=st.sampled_from(_INDEX),
    tensors=st.sampled_from(_TENSORS),
    prefix=st.sampled_from(_PREFIXES),
    marker=st.sampled_from(_MARKERS),
    packed=st.sampled_from([*[False] * 9, True]),
    tied=st.booleans(),
    head=st.sampled_from([*[True] * 5, False]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    other=st.sampled_from(_OTHERS),
    seed=st.integers(0, 2**16),
)


def write_layout(layout: Layout, sound: Path, tensors: Tensors, place: Path) -> None:
    """Write a directory with the config of `sound` and its `tensors` as the layout has them."""
    chance = random.Random(layout.seed)
    shutil.copytree(sound, place, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((sound / "config.json").read_text())
    config |= {"tie_word_embeddings": layout.tied}
    if layout.marker is not None:
        config["quantization_config"] = dict(layout.marker)
    stored = dict(_stored(layout, tensors, chance))
    if layout.kind in ("named", "named index"):
        config["transformers_weights"] = NAMED if layout.kind == "named" else f"{NAMED}.index.json"
    (place / "config.json").write_text(json.dumps(config))
    if layout.kind in ("single", "both"):
        _save(stored, place / SINGLE)
    elif layout.kind == "named":
        _save(stored, place / NAMED)
        if chance.random() < 0.5:
            _save(_others(stored), place / SINGLE)
    if layout.kind in ("shards", "both", "named index"):
        index = f"{NAMED}.index.json" if layout.kind == "named index" else INDEX
        _write_shards(layout, _others(stored) if layout.kind == "both" else stored, place, index, chance)
    if layout.other.endswith(".safetensors"):
        _save({"mtp.fc.weight": torch.ones(4, 4), "model.norm.weight": torch.zeros(16)}, place / layout.other)
    elif layout.other:
        (place / layout.other).write_bytes(b"\x80\x02}q\x00.")


def _others(tensors: Tensors) -> Tensors:
    """Return other weights of the same names."""
    return {name: (one.float() + 1).to(one.dtype) for name, one in tensors.items()}


def _stored(layout: Layout, tensors: Tensors, chance: random.Random) -> Iterator[tuple[str, torch.Tensor]]:
    names = [name for name in tensors if layout.head or name != "lm_head.weight"]
    picked = chance.choice(names)
    ending = ".".join(picked.split(".")[-2:])
    for name in names:
        one = tensors[name].to(layout.dtype)
        if layout.tensors == "gone" and name == picked:
            continue
        if layout.tensors == "gone from all" and name.endswith(ending):
            continue
        if name == picked and layout.tensors in ("empty", "cut"):
            one = torch.zeros(0, dtype=layout.dtype) if layout.tensors == "empty" else one[:-1].clone()
        new = f"{layout.prefix}{name}" if layout.tensors != "partly renamed" or chance.random() < 0.5 else f"old.{name}"
        if layout.packed and name.endswith("proj.weight"):
            yield f"{new}_scale_inv", torch.ones(1, 1)
            one = one.to(torch.float8_e4m3fn)
        yield new, one
    if layout.tensors == "foreign":
        yield "vision_tower.layers.0.weight", torch.ones(3, 3, dtype=layout.dtype)
    if layout.tensors == "junk":
        yield f"model.layers.{chance.randrange(5)}.old_proj.weight", torch.ones(3, 3, dtype=layout.dtype)


@dataclass
class _Shards:
    """Files that are about to be written: the tensors of each, and the file of each tensor in the index."""

    files: list[str]
    parts: dict[str, Tensors]
    homes: dict[str, str]
    picked: str
    chance: random.Random

    def home(self, file: str) -> None:
        self.homes[self.picked] = file

    def copy(self) -> str:
        """Put another tensor of the same name into a file."""
        file = self.chance.choice([*self.files, "model-overlay.safetensors", "a-first.safetensors"])
        one = next(part[self.picked] for part in self.parts.values() if self.picked in part)
        self.parts.setdefault(file, {})[self.picked] = torch.full_like(one, 0.5)
        if file not in self.files:
            self.homes["another.weight"] = file
            self.parts[file]["another.weight"] = torch.ones(2)
        return file

    def stale(self) -> None:
        self.homes = {name: f"gone-{home}" for name, home in self.homes.items()}


_INDEX_FAULTS: Mapping[str, Callable[[_Shards], object]] = {
    "copy": _Shards.copy,
    "overlay": lambda shards: shards.home(shards.copy()),
    "moved": lambda shards: shards.home(shards.chance.choice(shards.files)),
    "unlisted": lambda shards: shards.homes.pop(shards.picked),
    "listed, not there": lambda shards: shards.homes.update({"model.layers.0.lost.weight": shards.files[0]}),
    "outside": lambda shards: shards.home("../other.safetensors"),
    "stale": _Shards.stale,
    "one file gone": lambda shards: shards.parts.pop(shards.chance.choice(shards.files)),
}
_TEXT_FAULTS: Mapping[str, Callable[[str], str]] = {
    "no metadata": lambda text: text.replace('"metadata": {"total_size": 1}, ', ""),
    "broken": lambda text: text[: len(text) // 2],
    "twice": lambda text: text.replace('"weight_map": {', '"weight_map": {"model.norm.weight": "x.safetensors", '),
}


def _write_shards(layout: Layout, stored: Tensors, place: Path, index: str, chance: random.Random) -> None:
    files = [f"model-{number:05}-of-{layout.shards:05}.safetensors" for number in range(1, layout.shards + 1)]
    homes = {name: chance.choice(files) for name in stored}
    parts = {file: {name: stored[name] for name, home in homes.items() if home == file} for file in files}
    shards = _Shards(files, parts, homes, chance.choice(list(stored)), chance)
    if layout.index in _INDEX_FAULTS:
        _INDEX_FAULTS[layout.index](shards)
    for file, part in shards.parts.items():
        if part:
            _save(part, place / file)
    if layout.index != "no index":
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": shards.homes})
        (place / index).write_text(_TEXT_FAULTS.get(layout.index, str)(text))


def _save(tensors: Tensors, path: Path) -> None:
    save_file({name: one.contiguous().clone() for name, one in tensors.items()}, path, {"format": "pt"})
