"""T5 and its kin: the first layer of each stack holds the position bias that all layers of the stack use."""

from surgeon.core.structure.boundary_layer_tensors import EndTensor
from surgeon.core.structure.structure import Family, StackRule

_ROLES = (
    (r"layer\.0\.(?:SelfAttention|LocalSelfAttention|TransientGlobalSelfAttention)\.o\.weight", "attention.output"),
    (r"layer\.0\.\w*SelfAttention\.q\.weight", "attention.query"),
    (r"layer\.0\.\w*SelfAttention\.k\.weight", "attention.key"),
    (r"layer\.0\.\w*SelfAttention\.v\.weight", "attention.value"),
    (r"layer\.0\.\w*SelfAttention\..+", "attention.inner"),
    (r"layer\.1\.EncDecAttention\.o\.weight", "cross_attention.output"),
    (r"layer\.1\.EncDecAttention\.[qkv]\.weight", "cross_attention.inner"),
)
_STACKS = (
    StackRule("decoder", r"(?:.*\.)?decoder\.block", ("num_decoder_layers",), implied=("num_layers",)),
    StackRule("encoder", r"(?:.*\.)?encoder\.block", ("num_layers", "num_hidden_layers")),
)

FAMILIES = (
    Family(
        model_types=("t5", "mt5", "longt5"),
        roles=_ROLES,
        stacks=_STACKS,
        fields=(EndTensor("relative_attention_bias, used by all", r".*\.(?:global_)?relative_attention_bias\..+"),),
    ),
    Family(model_types=("umt5",), roles=_ROLES, stacks=_STACKS),
)
