"""What differs between families where layers are cut into experts, neurons or heads."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from surgeon.core.structure.family import PartRules

_READ_HEAD_DIM = frozenset(
    {
        "apertus", "arcee", "aria_text", "cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "cwm", "dots1",
        "emu3", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "gemma", "gemma2", "gemma3", "gemma3_text",
        "gemma3n_text", "glm", "glm4", "glm4_moe", "got_ocr2", "granite", "granitemoe", "granitemoeshared",
        "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "kolibri1",
        "lfm2", "llama", "llama4", "llama4_text", "mellum", "minimax_m3_vl_text", "ministral", "ministral3",
        "mistral", "mixtral", "moss_transcribe_diarize", "nanochat", "nemotron", "olmo", "phi", "phi3",
        "phi4_multimodal", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open",
        "starcoder2", "vaultgemma",
    }
)  # fmt: skip
"""Model types of which transformers was seen to build fewer heads of the same width: `make architectures` tries all."""

_RULES: dict[str, PartRules] = {
    "glm": PartRules(halves=frozenset({"mlp.gate_up"})),
    "glm4": PartRules(halves=frozenset({"mlp.gate_up"})),
    "big_bird": PartRules(
        refused=(
            "attention_type",
            "a loaded model changes it in its layers at its first short input, and those that are replaced stay behind",
        )
    ),
    "dbrx": PartRules(flat_experts=True, counted_by={"experts": "ffn_config.moe_num_experts"}),
}


def part_rules(types: Sequence[str]) -> PartRules:
    """Return the rules for the model types that a config names of its text model, the most special last."""
    rules = next((_RULES[one] for one in reversed(types) if one in _RULES), PartRules())
    return msgspec.structs.replace(rules, reads_head_dim=bool(types) and types[-1] in _READ_HEAD_DIM)
