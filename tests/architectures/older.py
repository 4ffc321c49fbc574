"""Settings of published configs: older keys, which today's config classes turn into lists."""

from __future__ import annotations

from typing import Any

from tests.architectures.settings import MLA, OWN

OLDER: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2": {"max_window_layers": {"use_sliding_window": True, "max_window_layers": 3}},
    "qwen3": {"max_window_layers": {"use_sliding_window": True, "max_window_layers": 3}},
    "qwen2_moe": {
        "decoder_sparse_step": {"decoder_sparse_step": 2, "mlp_only_layers": [3], "use_sliding_window": True}
    },
    "qwen3_moe": {"decoder_sparse_step": {"decoder_sparse_step": 2, "mlp_only_layers": [3]}},
    "qwen3_next": {"decoder_sparse_step": {"decoder_sparse_step": 2, "full_attention_interval": 3}},
    "qwen3_5_text": {"full_attention_interval": {"full_attention_interval": 3}},
    "gemma3_text": {"sliding_window_pattern": {"sliding_window_pattern": 3}},
    "gemma3": {"sliding_window_pattern": {"text_config": {"sliding_window_pattern": 3}}},
    "gemma3n_text": {"shared": {"num_kv_shared_layers": 3}},
    "gemma4_text": {
        "num_kv_shared_layers": {"num_kv_shared_layers": 2},
        "no inputs of each layer": {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True},
        "experts": {
            "enable_moe_block": True,
            "use_double_wide_mlp": True,
            "num_kv_shared_layers": 3,
            "layer_types": [
                f"{kind}_attention"
                for kind in ("sliding", "full", "sliding", "sliding", "full", "sliding", "full", "full")
            ],
        },
    },
    "cohere2": {"sliding_window_pattern": {"sliding_window_pattern": 3}},
    "cohere2_moe": {"first_k_dense_replace": {"first_k_dense_replace": 2, "prefix_dense_sliding_window_pattern": 2}},
    "deepseek_v3": {"all dense": {**MLA, "first_k_dense_replace": 1}},
    "axk1": {"moe_layer_freq": {**MLA, "first_k_dense_replace": 2, "moe_layer_freq": 2}},
    "glm_moe_dsa": {
        "index_topk_freq": {**MLA, "index_topk_freq": 2, "first_k_dense_replace": 2},
        "index_topk_pattern": {**MLA, "index_topk_pattern": "FSSFFSFS"},
    },
    "llama4_text": {"interleave": {"interleave_moe_layer_step": 2, "no_rope_layer_interval": 3}},
    "smollm3": {"no_rope_layer_interval": {"no_rope_layer_interval": 3, "use_sliding_window": True}},
    "jamba": {
        "periods": {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 4, "expert_layer_offset": 0}
    },
    "lfm2": {"full_attn_idxs": {"full_attn_idxs": [1, 4, 6]}},
    "nemotron_h": {"hybrid_override_pattern": {"hybrid_override_pattern": "ME*--M*E"}},
    "kimi_linear": {
        "few of full attention": MLA,
        "linear_attn_config": {
            **MLA,
            "first_k_dense_replace": 2,
            "linear_attn_config": {
                "full_attn_layers": [3, 6],
                "kda_layers": [1, 2, 4, 5, 7, 8],
                "head_dim": 8,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
        },
    },
    "bailing_hybrid": {"layer_group_size": {**MLA, "layer_group_size": 3, "first_k_dense_replace": 3}},
    "afmoe": {"global_attn_every_n_layers": {"global_attn_every_n_layers": 3, "num_dense_layers": 2}},
    "modernbert-decoder": {"global_attn_every_n_layers": {"global_attn_every_n_layers": 4}},
    "exaone4": {"sliding_window_pattern": {"sliding_window_pattern": 3}},
    "ernie4_5_moe": {
        "moe_layer_interval": {"moe_layer_start_index": 2, "moe_layer_end_index": 6, "moe_layer_interval": 2}
    },
    "dots1": {"max_window_layers": {"n_shared_experts": 1, "max_window_layers": 3, "first_k_dense_replace": 2}},
    "inkling_text": {"local_layer_ids": {**OWN["inkling_text"], "local_layer_ids": [0, 1, 4], "dense_mlp_idx": 2}},
    "deepseek_v4": {
        "compress_ratios": {**OWN["deepseek_v4"], "compress_ratios": [0, 0, 4, 128, 4, 128, 4, 0], "num_hash_layers": 2}
    },
    "minimax_m3_vl_text": {
        "moe_layer_freq": {
            "moe_layer_freq": [0, 0, 1, 1, 1, 1, 1, 1],
            "sparse_attention_config": {"sparse_attention_freq": [0, 0, 0, 1, 1, 0, 1, 1]},
        }
    },
    "zamba2": {
        "num_mem_blocks": {
            **OWN["zamba2"],
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": True,
            "adapter_rank": 4,
            "num_key_value_heads": 4,
        }
    },
    "gpt_neo": {"attention_types": {"attention_types": [[["global", "local"], 4]]}},
    "gpt2": {"scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True}},
    "rwkv": {"rescale_every": {"rescale_every": 3}},
    "granite_swa": {"layer_rope_theta": {"layer_rope_theta": [0, 10000.0, 500.0, 10000.0, 0, 100.0, 10000.0, 20.0]}},
    "laguna": {"num_attention_heads_per_layer": {"num_attention_heads_per_layer": [4, 4, 8, 4, 4, 8, 4, 4]}},
    "mllama": {"cross_attention_layers": {"text_config": {"cross_attention_layers": [2, 5]}}},
}
"""The same with settings that published configs have and that today's config classes turn into lists."""
