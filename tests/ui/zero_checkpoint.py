"""A tiny checkpoint made of a header and zeros, for everything that reads no weights."""

from __future__ import annotations

import json
from pathlib import Path

LAYERS = 6
_WIDTH, _INNER = 8, 16
_SHAPES = {
    "self_attn.q_proj": (_WIDTH, _WIDTH),
    "self_attn.k_proj": (_WIDTH, _WIDTH),
    "self_attn.v_proj": (_WIDTH, _WIDTH),
    "self_attn.o_proj": (_WIDTH, _WIDTH),
    "mlp.gate_proj": (_INNER, _WIDTH),
    "mlp.up_proj": (_INNER, _WIDTH),
    "mlp.down_proj": (_WIDTH, _INNER),
    "input_layernorm": (_WIDTH,),
    "post_attention_layernorm": (_WIDTH,),
}


def write_checkpoint(path: Path, layers: int = LAYERS) -> Path:
    """Write a Llama checkpoint of zeros."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, _WIDTH), "model.norm.weight": (_WIDTH,)}
    for index in range(layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in _SHAPES.items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(offset))
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": _WIDTH, "intermediate_size": _INNER,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32, "tie_word_embeddings": True,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path
