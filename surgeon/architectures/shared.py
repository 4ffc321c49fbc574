"""What most families have in common: names of roles, per-layer config fields, what writes into the residual stream."""

from __future__ import annotations

from surgeon.core.structure.layer_count_fields import FirstCount
from surgeon.core.structure.layer_dependencies import IndexDependent
from surgeon.core.structure.layer_fields import KeyedByLayer, LayerField, LayerIndices, LayerPattern, PerLayerList
from surgeon.core.structure.structure import Silence, StackRule

_ATTENTION = (
    r"(?:.+\.)?(?:self_attn|self_attention|attention|attn|mha|multi_head_attention|self_att|temporal_block|mixer)"
    r"(?:\.(?:self|attention|self_attention|attn|qkv_proj|\d+))?"
)
_MIXER = r"(?:.+\.)?(?:linear_attn|mamba|mixer|conv|temporal_block|mlstm_layer)"
_CROSS = r"(?:encoder_attn|cross_attn|crossattention|EncDecAttention|layer\.1\.EncDecAttention)"
_MLP = (
    r"(?:(?:.+\.)?(?:mlp|feed_forward|ffn|feedforward|mlp_block|ff|block_sparse_moe|shared_mlp|mixer|DenseReluDense|mlps\.\d+|moe)"
    r"(?:\.(?:ffn|shared_experts?|shared_mlp|w_in))?\.)?"
)
_EXPERTS = r"(?:.+\.)?experts(?:\.mlp)?"
_KIND = r"(?:[._](?:weight|bias|.*scale.*|.*zeros.*|blocks|absmax|quant.*|g_idx|.*packed|.*shape|.*nested.*))*"
_LINEAR = r"(?:\.linear)?"

ROLES: tuple[tuple[str, str], ...] = (
    (rf"{_CROSS}\.(?:self\.)?(?:q_proj|query|query_proj|q){_KIND}", "cross_attention.query"),
    (rf"{_CROSS}\.(?:self\.)?(?:k_proj|key|key_proj|k){_KIND}", "cross_attention.key"),
    (rf"{_CROSS}\.(?:self\.)?(?:v_proj|value|value_proj|v){_KIND}", "cross_attention.value"),
    (rf"{_CROSS}\.(?:out_proj|o_proj|output\.dense|o){_KIND}", "cross_attention.output"),
    (rf"{_CROSS}\..+", "cross_attention.inner"),
    (rf"{_EXPERTS}\.\d+\.(?:gate_proj|w1|linear_gate){_KIND}", "experts.gate"),
    (rf"{_EXPERTS}\.\d+\.(?:up_proj|w3|fc1){_KIND}", "experts.up"),
    (rf"{_EXPERTS}\.\d+\.(?:down_proj|w2|fc2){_KIND}", "experts.down"),
    (rf"{_EXPERTS}\.(?:gate_up_proj|w13|input_linear|fc1)(?:_bias)?{_KIND}", "experts.gate_up"),
    (rf"{_EXPERTS}\.(?:gate_proj|w1)(?:_bias)?{_KIND}", "experts.gate"),
    (rf"{_EXPERTS}\.(?:up_proj|v1|w3)(?:_bias)?{_KIND}", "experts.up"),
    (rf"{_EXPERTS}\.(?:down_proj|w2|output_linear|fc2)(?:_bias)?{_KIND}", "experts.down"),
    (r"block_sparse_moe\.input_linear\.weight", "experts.gate_up"),
    (r"block_sparse_moe\.output_linear\.weight", "experts.down"),
    (
        rf"(?:.+\.)?(?:mlp|block_sparse_moe|feed_forward|moe|ffn|mixer)\.(?:gate|router)(?:\.(?!down_proj).+?)?{_KIND}",
        "router",
    ),
    (rf"(?:.+\.)?shared_expert_gate{_KIND}", "router"),
    (r".*\.?(?:expert_bias|e_score_correction_bias|balancing_biases|correction_bias|moe_statics\..+)", "router"),
    (rf"{_ATTENTION}\.(?:q_proj|wq|query|q_lin|Wq|query_proj|project_q){_LINEAR}{_KIND}", "attention.query"),
    (rf"{_ATTENTION}\.(?:k_proj|wk|key|k_lin|Wk|key_proj|project_k){_LINEAR}{_KIND}", "attention.key"),
    (rf"{_ATTENTION}\.(?:v_proj|wv|value|v_lin|Wv|value_proj|project_v){_LINEAR}{_KIND}", "attention.value"),
    (rf"{_ATTENTION}\.(?:qkv_proj|query_key_value|c_attn|Wqkv|qkv|gqkv_proj){_KIND}", "attention.qkv"),
    (
        rf"{_ATTENTION}\.(?:o_proj|dense|c_proj|wo|out_lin|Wo|attention_out|output\.dense){_LINEAR}{_KIND}",
        "attention.output",
    ),
    (
        r"attention\.output\.dense\.(?:weight|bias)|(?:.+\.)?(?:attn|self_attn|attention)(?:\.attention)?\.out_proj"
        + _KIND,
        "attention.output",
    ),
    (rf"{_ATTENTION}\.(?:q_norm|q_layernorm|query_layernorm){_KIND}", "norm.query"),
    (rf"{_ATTENTION}\.(?:k_norm|k_layernorm|key_layernorm){_KIND}", "norm.key"),
    (rf"{_MIXER}\.(?:out_proj|o_proj|linear_out){_KIND}", "mixer.output"),
    (rf"{_MIXER}\.(?:in_proj\w*|linear_x|linear_y){_KIND}", "mixer.input"),
    (rf"{_MLP}(?:gate_up_proj|gate_and_up_proj|input_linear|Wi){_KIND}", "mlp.gate_up"),
    (rf"{_MLP}(?:gate_proj|w1|proj_up_gate|linear_gate|w_0){_KIND}", "mlp.gate"),
    (
        rf"{_MLP}(?:up_proj|w3|fc1|c_fc|dense_h_to_4h|fc_in|intermediate\.dense|proj_up|w_1|wi_0|wi_1|wi|layer_1){_KIND}",
        "mlp.up",
    ),
    (
        rf"{_MLP}(?:down_proj|w2|fc2|c_proj|dense_4h_to_h|fc_out|output\.dense|proj_down|w_out|wo|Wo|output_linear|layer_2){_KIND}",
        "mlp.down",
    ),
    (
        rf"(?:input_layernorm|ln_1|attention_norm|input_norm|operator_norm|attn_norm|self_attn_layer_norm){_KIND}",
        "norm.input",
    ),
    (
        rf"(?:post_attention_layernorm|ln_2|ffn_norm|pre_feedforward_layernorm|pre_mlp_layernorm|mlp_norm|final_layer_norm){_KIND}",
        "norm.mlp",
    ),
    (r"(?:.+\.)?(?:self_attn|self_attention|attention|attn)(?:\.\d+)?\..+", "attention.inner"),
    (rf"{_MIXER}\..+", "mixer.inner"),
)
"""Tried in order. `inner` is what a module holds besides its projections: it acts only through the module's output."""

OUTPUTS = ("attention.output", "cross_attention.output", "mixer.output", "mlp.down", "experts.down")
"""The roles that write into the residual stream: a layer whose others are known is silenced by setting these to 0."""

SANDWICH = (
    (r"post_(?:attention|self_attn|attn|operator)_?(?:layer)?norm\.weight|post_norm1\.weight", "norm.post_attention"),
    (r"post_(?:feedforward|mlp|ffn)_?(?:layer)?norm\.weight|post_norm2\.weight", "norm.post_mlp"),
)
"""Roles in families that normalise what a sublayer returns before adding it."""


def post_norms(value: float = 0.0) -> tuple[tuple[Silence, ...], ...]:
    """Return the way to silence a layer with both post-norms: at 0, or at -1 where the norm multiplies by 1 + w."""
    return ((Silence("norm.post_attention", value), Silence("norm.post_mlp", value)),)


POST_NORM = (
    "it normalises the residual stream itself after each sublayer, so no values of its tensors make it an identity"
)
"""Why the families of the first transformers cannot be expanded by identities."""

IN_MEMORY: tuple[tuple[str, str], ...] = (
    (r"\.experts\.\d+\.(?:gate_proj|up_proj|w1|w3)\.weight$", ".experts.gate_up_proj"),
    (r"\.experts\.\d+\.(?:down_proj|w2)\.weight$", ".experts.down_proj"),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(?=(?:vision_tower|vision_model|multi_modal_projector|vision_embed_tokens)\.)", "model."),
)
"""Tried behind a family's own: experts that are stored one by one are stacked, text towers move under `model`."""

MOE_IS_MLP = (r"\.block_sparse_moe\.", ".mlp.")

FIELDS: tuple[LayerField, ...] = (
    PerLayerList("layer_types"),
    PerLayerList("mlp_layer_types"),
    PerLayerList("no_rope_layers"),
    PerLayerList("layers_block_type"),
    PerLayerList("attention_layers"),
    LayerIndices("mlp_only_layers"),
    LayerIndices("full_attn_idxs"),
    LayerIndices("moe_layers"),
    FirstCount("first_k_dense_replace"),
    LayerPattern("hybrid_override_pattern"),
    KeyedByLayer("per_layer_config"),
    IndexDependent("scale_attn_by_inverse_layer_idx"),
)

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")

STACKS: tuple[StackRule, ...] = (
    StackRule(
        "decoder",
        r"(?:.*\.)?decoder\.(?:layers|layer|block)",
        ("decoder_layers", "num_decoder_layers"),
        implied=("num_layers",),
    ),
    StackRule(
        "encoder",
        r"(?:.*\.)?encoder\.(?:layers|layer|block)",
        ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers"),
    ),
)
"""Stacks with a count of their own, in the order in which one is the default."""

LENGTH_KEYS = ("layers_block_type", "hybrid_override_pattern", "layer_types", "attn_layers")
"""Lists whose length is the layer count where nothing else gives it."""

COUNTED_BY_LENGTH = ("nemotron_h",)
"""Model types of which transformers takes the count from such a list, and has no field for it."""

TEXT_PARTS: tuple[tuple[str, ...], ...] = (
    ("text_config",),
    ("llm_config",),
    ("language_config",),
    ("thinker_config", "text_config"),
)
"""Where the config of a model of several parts describes the text model. What the top repeats of it is no other."""

CONFIG_PARTS: tuple[tuple[str, ...], ...] = (
    (),
    *TEXT_PARTS,
    ("decoder",),
    ("global_config",),
)

OTHER_TOWERS = r"(?:^|[._])(?:vision|visual|vit|image|audio|speech|sam|qformer|perceiver|patch|mtp)"
"""In a prefix: layers of another tower than the text model's."""

NOT_PER_LAYER = frozenset(
    {"architectures", "eos_token_id", "bos_token_id", "pad_token_id", "bad_words_ids", "suppress_tokens"}
)
"""Lists that may happen to have as many entries as there are layers, and say nothing about layers."""
