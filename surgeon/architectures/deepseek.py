"""DeepSeek and the families built like it: compressed keys and values, dense layers in front of those with experts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from surgeon.architectures.derived_layer_lists import FULL, LINEAR, SLIDING, every, first, where
from surgeon.core.structure.layer_count_fields import FirstCount
from surgeon.core.structure.layer_dependencies import ReadsEarlierLayer
from surgeon.core.structure.layer_fields import Config, PerLayerList
from surgeon.core.structure.structure import Family, Silence


def _mlp(number: int) -> PerLayerList:
    legacy = ("first_k_dense_replace", "moe_layer_freq")
    return PerLayerList("mlp_layer_types", first(number, legacy[0], freq_key=legacy[1]), legacy)


def indexers(config: Config, count: int) -> Sequence[str]:
    """Return which layers choose the tokens they look at, and which use the choice of one before them."""
    pattern = config.get("index_topk_pattern")
    if pattern is not None:
        return [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    freq, offset = max(config.get("index_topk_freq", 1), 1), config.get("index_skip_topk_offset", 2)
    return ["full" if max(index - offset + 1, 0) % freq == 0 else "shared" for index in range(count)]


def _choosers(config: Config, count: int) -> Sequence[tuple[Hashable, bool]]:
    return [("choice", kind == "shared") for kind in config.get("indexer_types") or indexers(config, count)]


def _dots3(config: Config, count: int) -> Sequence[str]:
    # Left alone beside it, per_layer_config is derived from layer_types.
    full = FULL if config.get("use_dsa") is False else "indexed_attention"
    windows = config.get("use_sliding_window") is not False
    return [SLIDING if windows and index >= 2 and index % 4 != 1 else full for index in range(count)]


FAMILIES = (
    Family(model_types=("dots3_note", "dots3_note_text"), fields=(PerLayerList("layer_types", _dots3), _mlp(1))),
    Family(model_types=("deepseek_v2",), fields=(FirstCount("first_k_dense_replace", 0),)),
    Family(model_types=("deepseek_v3",), fields=(FirstCount("first_k_dense_replace", 3),)),
    Family(
        model_types=("dots1",),
        fields=(
            FirstCount("first_k_dense_replace", 0),
            PerLayerList("layer_types", where(62, "max_window_layers"), ("max_window_layers",)),
        ),
    ),
    Family(model_types=("glm4_moe",), fields=(FirstCount("first_k_dense_replace", 1),)),
    Family(model_types=("glm4_moe_lite",), fields=(PerLayerList("mlp_layer_types", first(1)),)),
    Family(
        model_types=("axk1",),
        fields=(_mlp(1),),
        in_memory=((r"(\.layers\.\d+)\.post_mlp_layernorm\.", r"\1.mlp.post_mlp_layernorm."),),
    ),
    Family(
        model_types=("axk2",),
        roles=((r"input_layernorm\..+", "norm.input"), (r"post_attention_layernorm\..+", "norm.mlp")),
        fields=(_mlp(1),),
        in_memory=(
            (r"\.W_down\.", ".mlp.fc1."),
            (r"\.W_up\.", ".mlp.fc2."),
            (r"\.self_attn\.q_b_proj\.", ".self_attn.q_gate_proj."),
        ),
    ),
    Family(
        model_types=("longcat_flash",),
        # Its zero experts pass their input on, whatever the weights are: the norm before them makes it 0.
        roles=((r"post_attention_layernorm\.0\.weight", "norm.experts"),),
        silences=((Silence("attention.output"), Silence("norm.experts"), Silence("mlp.down")),),
    ),
    Family(
        model_types=("deepseek_v32",),
        fields=(PerLayerList("mlp_layer_types", first(3, "first_k_dense_replace"), ("first_k_dense_replace",)),),
    ),
    Family(
        model_types=("glm_moe_dsa",),
        fields=(
            PerLayerList("mlp_layer_types", first(3, "first_k_dense_replace"), ("first_k_dense_replace",)),
            PerLayerList(
                "indexer_types", indexers, ("index_topk_pattern", "index_topk_freq", "index_skip_topk_offset")
            ),
            ReadsEarlierLayer("choice of tokens", "indexer_types", _choosers),
        ),
    ),
    Family(
        model_types=("bailing_hybrid",),
        in_memory=(
            (r"^model\.word_embeddings\.", "model.embed_tokens."),
            (r"\.attention\.dense\.", ".attention.o_proj."),
            (r"\.attention\.(A_log|dt_bias|f_proj\.)", r".attention.forget_gate.\1"),
            (r"\.attention\.[qkv]_conv1d\.", ".attention.conv1d."),
            (r"\.attention\.", ".self_attn."),
            (r"\.gate\.expert_bias$", ".gate.e_score_correction_bias"),
        ),
        fields=(
            PerLayerList("layer_types", every(6, "layer_group_size", other=LINEAR), ("layer_group_size",)),
            PerLayerList("mlp_layer_types", first(2, "first_k_dense_replace"), ("first_k_dense_replace",)),
        ),
    ),
)
