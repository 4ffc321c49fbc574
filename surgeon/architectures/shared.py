"""What most families have in common: names of roles, per-layer config fields, ways to silence a layer."""

from __future__ import annotations

from surgeon.core.layer_fields import ByIndex, EachLayer, FirstCount, Indices, LastCount, LayerField, Pattern
from surgeon.core.structure import Silence

_ATTENTION = r"(?:self_attn|self_attention|attn|attention|attention\.self|self_attn\.attn|mha)"
_MLP = r"(?:mlp|feed_forward|ffn|feedforward|shared_expert|shared_experts|shared_mlp|block_sparse_moe\.shared_experts)"
_EXPERTS = r"(?:mlp\.experts|block_sparse_moe\.experts|feed_forward\.experts|moe\.experts|experts)"
_KIND = r"(?:\.(?:weight|bias|.*scale.*|.*zeros.*|absmax|quant.*|g_idx))?"

ROLES: tuple[tuple[str, str], ...] = (
    (rf"{_ATTENTION}\.(?:q_proj|wq|query|q_lin){_KIND}", "attention.query"),
    (rf"{_ATTENTION}\.(?:k_proj|wk|key|k_lin){_KIND}", "attention.key"),
    (rf"{_ATTENTION}\.(?:v_proj|wv|value|v_lin){_KIND}", "attention.value"),
    (rf"{_ATTENTION}\.(?:qkv_proj|query_key_value|c_attn|Wqkv|qkv){_KIND}", "attention.qkv"),
    (rf"{_ATTENTION}\.(?:o_proj|out_proj|dense|c_proj|wo|out_lin){_KIND}", "attention.output"),
    (rf"{_ATTENTION}\.(?:q_norm|q_layernorm|query_layernorm){_KIND}", "norm.query"),
    (rf"{_ATTENTION}\.(?:k_norm|k_layernorm|key_layernorm){_KIND}", "norm.key"),
    (rf"{_EXPERTS}\.\d+\.(?:gate_proj|w1){_KIND}", "experts.gate"),
    (rf"{_EXPERTS}\.\d+\.(?:up_proj|w3){_KIND}", "experts.up"),
    (rf"{_EXPERTS}\.\d+\.(?:down_proj|w2){_KIND}", "experts.down"),
    (rf"{_EXPERTS}\.gate_up_proj(?:_bias)?{_KIND}", "experts.gate_up"),
    (rf"{_EXPERTS}\.down_proj(?:_bias)?{_KIND}", "experts.down"),
    (rf"(?:mlp|block_sparse_moe|feed_forward|moe)\.(?:gate|router|router\.gate){_KIND}", "router"),
    (rf"{_MLP}\.(?:gate_up_proj|gate_and_up_proj){_KIND}", "mlp.gate_up"),
    (rf"{_MLP}\.(?:gate_proj|w1){_KIND}", "mlp.gate"),
    (rf"{_MLP}\.(?:up_proj|w3|fc1|c_fc|dense_h_to_4h|fc_in){_KIND}", "mlp.up"),
    (rf"{_MLP}\.(?:down_proj|w2|fc2|c_proj|dense_4h_to_h|fc_out){_KIND}", "mlp.down"),
    (rf"(?:input_layernorm|ln_1|attention_norm|input_norm){_KIND}", "norm.input"),
    (rf"(?:post_attention_layernorm|ln_2|ffn_norm){_KIND}", "norm.mlp"),
)

FIELDS: tuple[LayerField, ...] = (
    EachLayer("layer_types"),
    EachLayer("mlp_layer_types"),
    EachLayer("no_rope_layers"),
    EachLayer("layers_block_type"),
    EachLayer("attention_layers"),
    Indices("mlp_only_layers"),
    Indices("full_attn_idxs"),
    Indices("moe_layers"),
    FirstCount("first_k_dense_replace"),
    LastCount("num_kv_shared_layers"),
    Pattern("hybrid_override_pattern"),
    ByIndex("scale_attn_by_inverse_layer_idx"),
)

RESIDUAL_OUTPUTS: tuple[tuple[Silence, ...], ...] = (
    (Silence("attention.output"), Silence("mlp.down"), Silence("experts.down")),
    (Silence("attention.output"), Silence("mlp.down")),
    (Silence("attention.output"), Silence("experts.down")),
)

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

CONFIG_PARTS: tuple[tuple[str, ...], ...] = ((), ("text_config",), ("llm_config",), ("language_config",))

NOT_PER_LAYER = frozenset({"architectures", "eos_token_id", "bos_token_id", "pad_token_id", "bad_words_ids", "suppress_tokens"})
"""Lists that may happen to have as many entries as there are layers, and say nothing about layers."""
