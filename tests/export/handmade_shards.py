"""Checkpoints written by hand, byte for byte, without torch or safetensors, so that they can also be wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
    "F8_E8M0": 1,
}  # fmt: skip
CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Stored:
    """One tensor as it is to be written."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def random_tensor(shape: tuple[int, ...], dtype: str = "BF16", seed: str = "") -> Stored:
    """Return a tensor of small random numbers; bytes are drawn from `seed`."""
    count = 1
    for size in shape:
        count *= size
    raw = bytearray(random.Random(f"{seed}{shape}{dtype}").randbytes(count * BYTES[dtype]))
    if dtype == "BF16":
        raw[1::2] = bytes(0x3D | byte & 0x80 for byte in raw[1::2])  # between 2**-5 and 2**-3, of either sign
    return Stored(dtype, shape, bytes(raw))


def llama_tensors(layers: int, dtype: str = "BF16") -> dict[str, Stored]:
    """Return the tensors of a Llama as CONFIG describes it."""
    width, inner, words = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width)}
    for layer in range(layers):
        inside = {
            "input_layernorm": (width,),
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (width // 2, width),
            "self_attn.v_proj": (width // 2, width),
            "self_attn.o_proj": (width, width),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (words, width)}
    return {name: random_tensor(shape, dtype, name) for name, shape in shapes.items()}


def header_of(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Return the header that describes tensors laid out in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, one in tensors.items():
        end = position + len(one.data)
        header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [position, end]}
        position = end
    return header


def write_shard(path: Path, tensors: Mapping[str, Stored], header: Mapping[str, Any] | bytes | None = None) -> Path:
    """Write one shard; `header` replaces the true one."""
    header = header_of(tensors) if header is None else header
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(one.data for one in tensors.values()))
    return path


def write_config(directory: Path, layers: int, **changes: Any) -> None:
    """Write config.json."""
    text = json.dumps({**CONFIG, "num_hidden_layers": layers, **changes}, indent=2)
    (directory / "config.json").write_text(text)


def write_llama(directory: Path, layers: int = 4, shards: int = 1, dtype: str = "BF16") -> Path:
    """Write a whole checkpoint with a few side files and return its directory."""
    directory.mkdir(parents=True)
    write_config(directory, layers)
    write_weights(directory, llama_tensors(layers, dtype), shards)
    (directory / "generation_config.json").write_text('{"do_sample": false}')
    (directory / "LICENSE").write_text("do as you like\n")
    return directory


def write_weights(directory: Path, tensors: Mapping[str, Stored], shards: int = 1) -> None:
    """Write tensors as one file, or as several with an index."""
    if shards == 1:
        write_shard(directory / "model.safetensors", tensors)
        return
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    weight_map: dict[str, str] = {}
    for number, file in enumerate(names):
        chosen = _slice(list(tensors), number, shards)
        write_shard(directory / file, {name: tensors[name] for name in chosen})
        weight_map |= dict.fromkeys(chosen, file)
    write_index(directory, weight_map)


def _slice(names: Sequence[str], number: int, parts: int) -> Sequence[str]:
    return names[len(names) * number // parts : len(names) * (number + 1) // parts]


def write_index(directory: Path, weight_map: Mapping[str, str]) -> None:
    """Write the index of a sharded checkpoint."""
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": dict(weight_map)})
    (directory / "model.safetensors.index.json").write_text(text)
