"""DeepSeek V4: compressed attention of two kinds, experts chosen by hash in front, several residual streams."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.core.structure.layer_fields import Config, PerLayerList
from surgeon.core.structure.structure import Family

_CSA, _HCA, _SLIDING = "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"
_OF_RATIO = {0: _SLIDING, 4: _CSA, 128: _HCA}


def _attention(config: Config, count: int) -> Sequence[str]:
    ratios = config.get("compress_ratios")
    if ratios is not None:
        return [_OF_RATIO[ratio] for ratio in ratios[:count]]
    return [_CSA if index >= 2 and index % 2 else _HCA for index in range(count)]


def _experts(config: Config, count: int) -> Sequence[str]:
    number = config.get("num_hash_layers")
    number = 3 if number is None else number
    return ["hash_moe" if index < number else "moe" for index in range(count)]


FAMILY = Family(
    model_types=("deepseek_v4",),
    roles=(
        (r"attn\.wo_b\.weight", "attention.output"),
        (r"ffn\.gate\.tid2eid", "router"),
    ),
    fields=(
        PerLayerList("layer_types", _attention, ("compress_ratios",)),
        PerLayerList("mlp_layer_types", _experts, ("num_hash_layers",)),
    ),
    in_memory=(
        (r"^embed\.", "model.embed_tokens."),
        (r"^norm\.", "model.norm."),
        (r"^head\.", "lm_head."),
        (r"^(?:model\.)?hc_head_(\w+)$", r"model.hc_head.hc_\1"),
        (r"^layers\.", "model.layers."),
        (r"\.hc_(attn|ffn)_(\w+)$", r".\1_hc.\2"),
        (r"\.attn_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.attn\.attn_sink$", ".attn.sinks"),
        (r"\.attn\.", ".self_attn."),
        (r"\.ffn\.", ".mlp."),
        (r"\.indexer\.compressor\.", ".compressor.indexer."),
        (r"\.indexer\.weights_proj\.", ".compressor.indexer.scorer.weights_proj."),
        (r"\.self_attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
        (r"(\.self_attn.*)\.norm\.", r"\1.kv_norm."),
        (r"\.ape$", ".position_bias"),
        (r"\.wq_(a|b)\.", r".q_\1_proj."),
        (r"\.wo_(a|b)\.", r".o_\1_proj."),
        (r"\.wkv\.", ".kv_proj."),
        (r"\.wgate\.", ".gate_proj."),
        (r"\.q_norm\.", ".q_a_norm."),
        (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
        (r"\.shared_experts\.w1\.", ".shared_experts.gate_proj."),
        (r"\.shared_experts\.w2\.", ".shared_experts.down_proj."),
        (r"\.shared_experts\.w3\.", ".shared_experts.up_proj."),
    ),
    no_identity="its layers mix several streams with weights that no values of its tensors turn into an identity",
)
