"""GPT-2: matrices stored as (in, out), query, key and value in one; buffers of old checkpoints travel along."""

from surgeon.core.structure.structure import Family

FAMILY = Family(
    model_types=("gpt2", "gpt-sw3"),
    transposed=frozenset({"attention.qkv", "attention.output", "mlp.up", "mlp.down"}),
    fused={"attention.qkv": ("attention.query", "attention.key", "attention.value")},
    in_memory=((r"^(h\.\d+|wte|wpe|ln_f)\.", r"transformer.\1."),),
)
