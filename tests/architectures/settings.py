"""Small settings for a tiny model of every type: the ones that fit nearly all, and each type's own where they do not."""

from __future__ import annotations

from typing import Any

LAYERS = 7
"""Layers of a tiny model: no common divisor with any period, and no list of another kind is as long."""

SMALL: dict[str, Any] = {
    # Windows are shorter than the test's sequences, or a wrong one would change nothing.
    "sliding_window": 5, "window_size": 5, "attention_window_size": 5, "local_attention": 10, "attention_chunk_size": 6,
    "chunk_size": 4, "mamba_chunk_size": 4, "block_size": 4, "sliding_window_size": 5,
    "vocab_size": 131, "vocab_size_per_layer_input": 131, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "emb_dim": 32, "embedding_size": 32, "embedding_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "n_inner": 48, "dff": 48, "d_inner": 48,
    "dim_ff": 48, "feed_forward_size": 48, "hidden_size_per_layer_input": 4, "dense_intermediate_size": 48,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_layers": LAYERS, "num_decoder_layers": LAYERS, "num_encoder_layers": LAYERS,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "attention_heads": 4, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_head": 8, "kv_channels": 8, "rotary_dim": 4,
    "q_lora_rank": 12, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4, "o_lora_rank": 8, "num_output_groups": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "top_k_experts": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_state": 8, "mamba_d_head": 8, "mamba_head_dim": 8, "mamba_d_ssm": 64,
    "mamba_n_groups": 2, "n_groups": 2, "n_mamba_heads": 8, "state_size": 8, "ssm_state_size": 8, "mamba_dt_rank": 4,
    "time_step_rank": 4, "mamba_expand": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_num_heads": 4, "linear_head_dim": 8, "lru_width": 32, "attention_hidden_size": 32, "laurel_rank": 4,
    "attention_dropout": 0.0,
}  # fmt: skip

VISION: dict[str, Any] = {
    "num_hidden_layers": 2, "depth": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "hidden_size": 16, "intermediate_size": 16,
    "num_attention_heads": 2, "num_heads": 2, "image_size": 16, "patch_size": 8, "out_hidden_size": 32, "embed_dim": 16,
    "num_position_embeddings": 16, "projection_dim": 16,
}  # fmt: skip
"""For the towers that are not the text model."""

_MLA = {"num_key_value_heads": 4}
_QWEN4 = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 2,
    "output_gate_type": "silu", "hc_count": 2, "hc_lowrank": 8, "ple_layer_ids": [1, 3], "ngram_vocab_size_base": 31,
    "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 1, "heads_per_ngram": 2,
}  # fmt: skip
_DOTS3 = {
    **_MLA, "shared_experts_intermediate_size": 16, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_q_lora_rank": 8,
    "swa_kv_lora_rank": 8, "swa_head_dim": 12, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8, "head_dim": 16,
}  # fmt: skip
_NO_SLICES = {"hidden_size_per_layer_input": 0}
_SHARED_KV = {"num_kv_shared_layers": 0}
_BLT = {"hidden_size": 32, "hidden_size_global": 32, "num_attention_heads": 4, "intermediate_size": 48}

OWN: dict[str, dict[str, Any]] = {
    "axk1": _MLA, "axk2": _MLA, "bailing_hybrid": _MLA, "deepseek_v2": _MLA, "deepseek_v3": _MLA, "deepseek_v32": _MLA,
    "glm4_moe_lite": _MLA, "glm_moe_dsa": _MLA, "kimi_linear": _MLA, "longcat_flash": {**_MLA, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2}, "minicpm3": _MLA, "youtu": _MLA,
    "bamba": {"attn_layer_indices": [2, 5]},
    "blt": {"encoder_config": _BLT, "decoder_config": _BLT, "global_config": {**_BLT}, "patcher_config": {**_BLT},
            "encoder_hash_byte_group_size": [3, 4], "encoder_hash_byte_group_vocab": 50, "patch_in_forward": False},
    "codegen": {"rotary_dim": 8}, "gptj": {"rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0,
                                                                  "mrope_section": [2, 1, 1]}}},
    "cpmant": {"dim_head": 8, "position_bias_max_distance": 32, "position_bias_num_buckets": 8},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 16, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v4": {"head_dim": 16, "index_topk": 2, "hc_mult": 2},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"text_config": _DOTS3, "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 16, "adapter_out_dim": 32}, "audio_config": {"adapter_input_size": 16, "adapter_out_dim": 32}}, "dots3_note_text": _DOTS3,
    "gemma4": {"text_config": _NO_SLICES}, "gemma4_text": _NO_SLICES,
    "granitemoehybrid": {"layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention", "linear_attention",
                                         "full_attention", "linear_attention"]},
    "gemma3n": {"text_config": _SHARED_KV}, "gemma3n_text": _SHARED_KV,
    "gpt_neo": {"attention_types": [[["global", "local"], 3], [["local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "mllama": {"text_config": {"cross_attention_layers": [1, 4]}},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention", "moe"]},
    "qwen4_exp": {"text_config": _QWEN4}, "qwen4_exp_text": _QWEN4,
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh", "local", "local", "lsh", "lsh", "local"], "num_buckets": 4,
                 "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attention_head_size": 8, "hash_seed": 0,
                 "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
    "inkling_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "logits_mup_width_multiplier": 1.0},
    "inkling2_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "roc_bert": {"pronunciation_embed_dim": 8, "pronunciation_vocab_size": 131, "shape_embed_dim": 8, "shape_vocab_size": 131},
    "rwkv": {"rescale_every": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
              "n_mamba_heads": 2, "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a type needs that the generic settings do not give, or give wrongly."""

UNBUILDABLE = {
    "gemma3n": "its vision tower needs timm and pillow",
    "gemma4_assistant": "reads the keys and values of another model",
    "gemma4_unified_assistant": "reads the keys and values of another model",
    "musicgen": "AutoModelForCausalLM gives its decoder a config that is not the decoder's",
    "musicgen_melody": "AutoModelForCausalLM gives its decoder a config that is not the decoder's",
}
"""Types that `AutoModelForCausalLM` lists but cannot build on their own, and why."""
