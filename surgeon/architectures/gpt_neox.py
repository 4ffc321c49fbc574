"""GPT-NeoX and Pythia: attention and MLP in parallel, biases, query, key and value interleaved by head."""

from surgeon.core.structure import Family

FAMILY = Family(
    model_types=("gpt_neox",),
    fused={"attention.qkv": ("attention.query", "attention.key", "attention.value")},
    fused_by_head=True,
)
