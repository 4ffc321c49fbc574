"""Writes tiny checkpoints with nothing but the standard library."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]
HIDDEN, INNER, WORDS, HEADS, KV_HEADS = 32, 48, 64, 4, 2
HEAD = HIDDEN // HEADS


def llama_shapes(layers: int) -> Shapes:
    """Return the tensors of a Llama with tied embeddings."""
    each: Shapes = {
        "input_layernorm.weight": (HIDDEN,),
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "post_attention_layernorm.weight": (HIDDEN,),
        "mlp.gate_proj.weight": (INNER, HIDDEN),
        "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
    }
    shapes: Shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN), "model.norm.weight": (HIDDEN,)}
    return shapes | {f"model.layers.{at}.{name}": shape for at in range(layers) for name, shape in each.items()}


def llama_config(layers: int, **more: Any) -> dict[str, Any]:
    """Return its config; `more` adds or replaces keys."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": layers, "vocab_size": WORDS,
        "tie_word_embeddings": True, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32", **more,
    }  # fmt: skip


def tiny_llama(directory: Path, layers: int = 6, **more: Any) -> Path:
    """Write a Llama of random float32 weights and return its directory."""
    return write_checkpoint(directory, llama_config(layers, **more), llama_shapes(layers))


def write_checkpoint(directory: Path, config: dict[str, Any], shapes: Shapes) -> Path:
    """Write a checkpoint of random float32 weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    draw = random.Random(0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes.items():
        count, start = math.prod(shape), len(data)
        data += struct.pack(f"<{count}f", *(draw.gauss(1.0 if "norm" in name else 0.0, 0.2) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return directory
