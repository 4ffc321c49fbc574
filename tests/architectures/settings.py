"""Small settings for a tiny model of every type: what fits nearly all, and each type's own where that does not."""

from __future__ import annotations

from typing import Any

LAYERS = 8
"""Layers of a tiny model: enough that each kind of layer occurs, also after removing some."""

SMALL: dict[str, Any] = {
    # Windows are shorter than the test's sequences, or a wrong one would change nothing.
    "sliding_window": 5,
    "window_size": 5,
    "attention_window_size": 5,
    "local_attention": 10,
    "attention_chunk_size": 6,
    "chunk_size": 4,
    "mamba_chunk_size": 4,
    "block_size": 4,
    "sliding_window_size": 5,
    "vocab_size": 131,
    "vocab_size_per_layer_input": 131,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "embedding_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "n_inner": 48,
    "dff": 48,
    "d_inner": 48,
    "dim_ff": 48,
    "feed_forward_size": 48,
    "hidden_size_per_layer_input": 4,
    "dense_intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_encoder_layers": LAYERS,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_head": 8,
    "kv_channels": 8,
    "rotary_dim": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 4,
    "o_lora_rank": 8,
    "num_output_groups": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "moe_num_experts": 4,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 2,
    "n_groups": 2,
    "n_mamba_heads": 8,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "mamba_expand": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "lru_width": 32,
    "attention_hidden_size": 32,
    "laurel_rank": 4,
    "attention_dropout": 0.0,
    "is_decoder": True,
}

VISION: dict[str, Any] = {
    "num_hidden_layers": 2,
    "depth": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "out_hidden_size": 32,
    "embed_dim": 16,
    "num_position_embeddings": 16,
    "projection_dim": 16,
}
"""For the towers that are not the text model."""

_MLA = {"num_key_value_heads": 4}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "output_gate_type": "silu",
    "hc_count": 2,
    "hc_lowrank": 8,
    "ple_layer_ids": [1, 3],
    "ngram_vocab_size_base": 31,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "heads_per_ngram": 2,
}
_DOTS3 = {
    **_MLA,
    "shared_experts_intermediate_size": 16,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 8,
    "swa_kv_lora_rank": 8,
    "swa_head_dim": 12,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
    "head_dim": 16,
}
_NO_SLICES = {"hidden_size_per_layer_input": 0}
_SHARED_KV = {"num_kv_shared_layers": 0}
_ZAMBA = [
    "linear_attention",
    "hybrid",
    "linear_attention",
    "linear_attention",
    "linear_attention",
    "hybrid",
    "linear_attention",
    "hybrid",
]
_BLT = {"hidden_size": 32, "hidden_size_global": 32, "num_attention_heads": 4, "intermediate_size": 48}

OWN: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bailing_hybrid": _MLA,
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "kimi_linear": _MLA,
    "longcat_flash": {**_MLA, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2},
    "minicpm3": _MLA,
    "youtu": _MLA,
    "bamba": {"attn_layer_indices": [2, 5]},
    "blt": {
        "encoder_config": _BLT,
        "decoder_config": _BLT,
        "global_config": {**_BLT},
        "patcher_config": {**_BLT},
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_hash_byte_group_vocab": 50,
        "patch_in_forward": False,
    },
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        }
    },
    "cpmant": {"dim_head": 8, "position_bias_max_distance": 32, "position_bias_num_buckets": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"head_dim": 16, "index_topk": 2, "hc_mult": 2},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 16, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 16, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS3,
    "gemma4": {"text_config": _NO_SLICES},
    "gemma4_text": _NO_SLICES,
    "granitemoehybrid": {
        "layer_types": [
            "linear_attention",
            "linear_attention",
            "full_attention",
            "linear_attention",
            "linear_attention",
            "full_attention",
            "linear_attention",
            "linear_attention",
        ]
    },
    "gemma3n": {"text_config": _SHARED_KV},
    "gemma3n_text": _SHARED_KV,
    "gpt_neo": {"attention_types": [[["global", "local"], 3], [["local"], 2]]},
    "lfm2_moe": {
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv", "conv", "full_attention"]
    },
    "mamba2": {"num_heads": 8},
    "mllama": {"text_config": {"cross_attention_layers": [3, 6]}},
    "nemotron_h": {
        "layers_block_type": [
            "linear_attention",
            "moe",
            "full_attention",
            "mlp",
            "mlp",
            "linear_attention",
            "full_attention",
            "moe",
        ]
    },
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh", "local", "local", "lsh", "lsh", "local", "local"],
        "num_buckets": 4,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 8,
        "hash_seed": 0,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "inkling_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "logits_mup_width_multiplier": 1.0,
    },
    "inkling2_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 131,
        "shape_embed_dim": 8,
        "shape_vocab_size": 131,
    },
    "rwkv": {"rescale_every": 0},
    "xlstm": {"chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": _ZAMBA, "n_mamba_heads": 2, "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": _ZAMBA},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs that the generic settings do not give, or give wrongly."""

UNBUILDABLE = {
    "gemma3n": "its vision tower needs timm and pillow",
    "gemma4_assistant": "reads the keys and values of another model",
    "gemma4_unified_assistant": "reads the keys and values of another model",
    "musicgen": "AutoModelForCausalLM gives its decoder a config that is not the decoder's",
    "musicgen_melody": "AutoModelForCausalLM gives its decoder a config that is not the decoder's",
}
"""Types that `AutoModelForCausalLM` lists but cannot build on their own, and why."""

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
    "gemma4_text": {"num_kv_shared_layers": {"num_kv_shared_layers": 2}},
    "cohere2": {"sliding_window_pattern": {"sliding_window_pattern": 3}},
    "cohere2_moe": {"first_k_dense_replace": {"first_k_dense_replace": 2, "prefix_dense_sliding_window_pattern": 2}},
    "deepseek_v3": {"all dense": {**_MLA, "first_k_dense_replace": 1}},
    "axk1": {"moe_layer_freq": {**_MLA, "first_k_dense_replace": 2, "moe_layer_freq": 2}},
    "glm_moe_dsa": {
        "index_topk_freq": {**_MLA, "index_topk_freq": 2, "first_k_dense_replace": 2},
        "index_topk_pattern": {**_MLA, "index_topk_pattern": "FSSFFSFS"},
    },
    "llama4_text": {"interleave": {"interleave_moe_layer_step": 2, "no_rope_layer_interval": 3}},
    "smollm3": {"no_rope_layer_interval": {"no_rope_layer_interval": 3, "use_sliding_window": True}},
    "jamba": {
        "periods": {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 4, "expert_layer_offset": 0}
    },
    "lfm2": {"full_attn_idxs": {"full_attn_idxs": [1, 4, 6]}},
    "nemotron_h": {"hybrid_override_pattern": {"hybrid_override_pattern": "ME*--M*E"}},
    "kimi_linear": {
        "linear_attn_config": {
            **_MLA,
            "first_k_dense_replace": 2,
            "linear_attn_config": {
                "full_attn_layers": [3, 6],
                "kda_layers": [1, 2, 4, 5, 7, 8],
                "head_dim": 8,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
        }
    },
    "bailing_hybrid": {"layer_group_size": {**_MLA, "layer_group_size": 3, "first_k_dense_replace": 3}},
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
    "gpt_neo": {"attention_types": {"attention_types": [[["global", "local"], 4]]}},
    "gpt2": {"scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True}},
    "rwkv": {"rescale_every": {"rescale_every": 3}},
    "granite_swa": {"layer_rope_theta": {"layer_rope_theta": [0, 10000.0, 500.0, 10000.0, 0, 100.0, 10000.0, 20.0]}},
    "laguna": {"num_attention_heads_per_layer": {"num_attention_heads_per_layer": [4, 4, 8, 4, 4, 8, 4, 4]}},
    "mllama": {"cross_attention_layers": {"text_config": {"cross_attention_layers": [2, 5]}}},
}
"""The same with settings that published configs have and that today's config classes turn into lists."""
