"""Ten structurally different families, written by hand as configs and tensor shapes, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.export.handmade_shards import random_tensor, write_shard

Shapes = dict[str, tuple[int, ...]]
_ATTENTION: Shapes = dict.fromkeys((f"self_attn.{name}_proj.weight" for name in "qkvo"), (4, 4))
_NORMS: Shapes = {"input_layernorm.weight": (4,), "post_attention_layernorm.weight": (4,)}
_DENSE: Shapes = {"mlp.gate_proj.weight": (6, 4), "mlp.up_proj.weight": (6, 4), "mlp.down_proj.weight": (4, 6)}
_EXPERT: Shapes = {"gate_proj.weight": (3, 4), "up_proj.weight": (3, 4), "down_proj.weight": (4, 3)}
_EXPERTS: Shapes = {f"mlp.experts.{number}.{name}": shape for number in range(2) for name, shape in _EXPERT.items()} | {
    "mlp.gate.weight": (2, 4)
}
_LINEAR: Shapes = {
    "linear_attn.in_proj.weight": (8, 4),
    "linear_attn.out_proj.weight": (4, 4),
    "linear_attn.A_log": (2,),
}
_PLAIN: Shapes = {**_NORMS, **_ATTENTION, **_DENSE}


@dataclass(frozen=True)
class HandMade:
    """A family: its config, how each layer is built, and what stands outside the layers."""

    name: str
    config: Mapping[str, Any]
    layers: int
    build: Callable[[int], Shapes]
    prefix: str = "model.layers"
    outside: Shapes = field(default_factory=lambda: {"model.embed_tokens.weight": (9, 4), "model.norm.weight": (4,)})
    more: Shapes = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write it as a checkpoint."""
        directory.mkdir(parents=True)
        shapes = {
            **self.outside,
            **{
                f"{self.prefix}.{layer}.{name}": shape
                for layer in range(self.layers)
                for name, shape in self.build(layer).items()
            },
            **self.more,
        }
        (directory / "config.json").write_text(json.dumps({"model_type": self.name, **self.config}, indent=2))
        write_shard(
            directory / "model.safetensors", {name: random_tensor(shape, "F32", name) for name, shape in shapes.items()}
        )
        return directory


def _sandwich(_layer: int) -> Shapes:
    return {**_PLAIN, "pre_feedforward_layernorm.weight": (4,), "post_feedforward_layernorm.weight": (4,)}


def _dense_first(layer: int) -> Shapes:
    return {**_NORMS, **_ATTENTION, **(_DENSE if layer < 2 else _EXPERTS)}


def _hybrid(layer: int) -> Shapes:
    return {**_NORMS, **(_ATTENTION if layer % 4 == 3 else _LINEAR), **(_DENSE if layer in (0, 4) else _EXPERTS)}


def _jamba(layer: int) -> Shapes:
    norms: Shapes = {"input_layernorm.weight": (4,), "pre_ff_layernorm.weight": (4,)}
    mixer: Shapes = _ATTENTION if layer % 4 == 1 else {"mamba.in_proj.weight": (8, 4), "mamba.out_proj.weight": (4, 4)}
    inner = _EXPERTS if layer % 2 else _DENSE
    return {**norms, **mixer, **{name.replace("mlp.", "feed_forward."): shape for name, shape in inner.items()}}


def _gpt2(_layer: int) -> Shapes:
    return {
        "ln_1.weight": (4,),
        "ln_1.bias": (4,),
        "attn.c_attn.weight": (4, 12),
        "attn.c_attn.bias": (12,),
        "attn.c_proj.weight": (4, 4),
        "attn.c_proj.bias": (4,),
        "ln_2.weight": (4,),
        "mlp.c_fc.weight": (4, 8),
        "mlp.c_proj.weight": (8, 4),
        "mlp.c_proj.bias": (4,),
    }


def _shared_kv(layer: int) -> Shapes:
    return {**_sandwich(layer), "self_attn.q_norm.weight": (4,)}


def _decoder(_layer: int) -> Shapes:
    return {
        **{
            f"{kind}.{name}.weight": (4, 4)
            for kind in ("self_attn", "encoder_attn")
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        },
        "fc1.weight": (8, 4),
        "fc2.weight": (4, 8),
        "self_attn_layer_norm.weight": (4,),
        "final_layer_norm.weight": (4,),
    }


_ENCODER = {name: shape for name, shape in _decoder(0).items() if not name.startswith("encoder_attn")}

FAMILIES = (
    HandMade("llama", {"num_hidden_layers": 5}, 5, lambda _: _PLAIN),
    HandMade("gpt2", {"n_layer": 6}, 6, _gpt2, prefix="h", outside={"wte.weight": (9, 4), "ln_f.weight": (4,)}),
    HandMade("gemma2", {"num_hidden_layers": 6}, 6, _sandwich),
    HandMade(
        "deepseek_v3",
        {"num_hidden_layers": 6, "first_k_dense_replace": 2, "num_nextn_predict_layers": 1},
        6,
        _dense_first,
        more={
            "model.layers.6.eh_proj.weight": (4, 8),
            **{f"model.layers.6.{name}": shape for name, shape in _dense_first(5).items()},
        },
    ),
    HandMade("qwen3_next", {"num_hidden_layers": 8, "mlp_only_layers": [0, 4], "num_experts": 2}, 8, _hybrid),
    HandMade("jamba", {"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 1}, 8, _jamba),
    HandMade(
        "gemma3n_text",
        {
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"] * 3,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
            "intermediate_size": [6] * 6,
            "hidden_size_per_layer_input": 2,
        },
        6,
        _shared_kv,
        outside={
            "model.embed_tokens.weight": (9, 4),
            "model.embed_tokens_per_layer.weight": (9, 6 * 2),
            "model.per_layer_model_projection.weight": (6 * 2, 4),
        },
    ),
    HandMade(
        "llama4_text",
        {"num_hidden_layers": 8, "interleave_moe_layer_step": 2},
        8,
        lambda layer: {**_NORMS, **_ATTENTION, **(_EXPERTS if layer % 2 else _DENSE)},
    ),
    HandMade(
        "pegasus",
        {"encoder_layers": 4, "decoder_layers": 5, "num_hidden_layers": 4},
        5,
        _decoder,
        prefix="model.decoder.layers",
        outside={
            "model.shared.weight": (9, 4),
            **{f"model.encoder.layers.{layer}.{name}": shape for layer in range(4) for name, shape in _ENCODER.items()},
        },
    ),
    HandMade(
        "brand_new",
        {
            "num_hidden_layers": 5,
            "layer_flavours": ["a", "b", "a", "c", "b"],
            "quantization_config": {
                "quant_method": "fp8",
                "modules_to_not_convert": ["lm_head", "model.layers.3.mlp.down_proj"],
            },
        },
        5,
        lambda _: _PLAIN,
    ),
)
