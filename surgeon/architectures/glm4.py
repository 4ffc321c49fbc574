"""GLM-4, Kolibri, HyperCLOVA X, AFMoE: norms before and after each sublayer."""

from surgeon.architectures.derived_layer_lists import every
from surgeon.architectures.shared import SANDWICH, post_norms
from surgeon.core.structure.layer_count_fields import FirstCount
from surgeon.core.structure.layer_fields import PerLayerList
from surgeon.core.structure.structure import Family

# Here post_attention_layernorm is the norm before the MLP.
_NAMED = (
    (r"post_attention_layernorm\.weight", "norm.mlp"),
    (r"post_self_attn_layernorm\.weight|post_attn_norm\.weight|post_norm1\.weight", "norm.post_attention"),
    (r"post_mlp_layernorm\.weight|post_ffn_norm\.weight|post_norm2\.weight", "norm.post_mlp"),
)

FAMILIES = (
    Family(model_types=("glm4", "hyperclovax"), roles=_NAMED, silences=post_norms()),
    Family(
        model_types=("kolibri1",),
        roles=_NAMED,
        silences=post_norms(),
        fields=(PerLayerList("layer_types", every(5)),),
        in_memory=(
            (r"\.moe\.router\.expert_bias$", ".mlp.gate.e_score_correction_bias"),
            (r"\.post_attn_norm\.", ".post_self_attn_layernorm."),
            (r"\.post_ffn_norm\.", ".post_mlp_layernorm."),
        ),
    ),
    Family(
        model_types=("afmoe",),
        roles=SANDWICH,
        silences=post_norms(),
        fields=(
            PerLayerList("layer_types", every(4, "global_attn_every_n_layers"), ("global_attn_every_n_layers",)),
            FirstCount("num_dense_layers", 1),
        ),
    ),
)
