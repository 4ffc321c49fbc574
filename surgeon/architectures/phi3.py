"""Phi-3: query, key and value in one matrix, gate and up in another."""

from surgeon.core.structure.structure import Family

FAMILY = Family(
    model_types=("phi3", "phi4_multimodal"),
    fused={
        "attention.qkv": ("attention.query", "attention.key", "attention.value"),
        "mlp.gate_up": ("mlp.gate", "mlp.up"),
    },
)
