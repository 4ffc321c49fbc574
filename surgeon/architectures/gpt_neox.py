"""GPT-NeoX and Pythia: attention and MLP in parallel, biases, query, key and value interleaved by head."""

from surgeon.core.structure.boundary_layer_tensors import EndTensor
from surgeon.core.structure.structure import Family

_FUSED = {"attention.qkv": ("attention.query", "attention.key", "attention.value")}

FAMILIES = (
    Family(model_types=("gpt_neox",), fused=_FUSED, fused_by_head=True, in_memory=((r"^embed_out\.", "lm_head."),)),
    Family(
        model_types=("gpt_neox_japanese",),
        roles=((r"attention\.dense_bias", "attention.output"),),
        fused=_FUSED,
        fused_by_head=True,
        fields=(EndTensor("attention.dense_bias", r"attention\.dense_bias", last=True, neutral=0.0),),
    ),
)
