"""Families with little of their own: which layers have a window or experts, when a config does not say."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.architectures.derived_layer_lists import FULL, SLIDING, every, first
from surgeon.core.structure.boundary_layer_tensors import EndTensor
from surgeon.core.structure.layer_fields import Config, Derived, PerLayerList
from surgeon.core.structure.structure import Family, Silence


def _cohere_moe(config: Config, count: int) -> Sequence[str]:
    dense = config.get("first_k_dense_replace", 0)
    front, rest = config.get("prefix_dense_sliding_window_pattern", 1), config.get("sliding_window_pattern", 4)
    kinds = [FULL if (index + 1) % front == 0 else SLIDING for index in range(dense)]
    return kinds + [FULL if (index + 1) % rest == 0 else SLIDING for index in range(count - dense)]


def _mimo(config: Config, count: int) -> Sequence[str]:
    del config
    return [FULL if index == 0 or (index + 1) % 6 == 0 else SLIDING for index in range(count)]


_RESIDUAL = Silence("residual.scale", 1.0)


def _flags(key: str, on: str, off: str, under: str = "") -> Derived:
    """A list of 0 and 1 in an older key, or in a mapping under one, that today's list replaces."""

    def derive(config: Config, count: int) -> Sequence[str]:
        flags = (config.get(under) or {} if under else config).get(key)
        return [on if flag else off for flag in flags] if flags is not None else [on if not under else off] * count

    return derive


FAMILIES = (
    Family(
        model_types=("minimax_m3_vl_text",),
        fields=(
            PerLayerList(
                "layer_types", _flags("sparse_attention_freq", "minimax_m3_sparse", FULL, "sparse_attention_config")
            ),
            PerLayerList("mlp_layer_types", _flags("moe_layer_freq", "sparse", "dense"), ("moe_layer_freq",)),
        ),
    ),
    Family(
        model_types=("doge",),
        roles=((r"(?:input|post_attention)_residual", "residual.scale"),),
        silences=(
            (_RESIDUAL, Silence("attention.output"), Silence("mlp.down")),
            (_RESIDUAL, Silence("attention.output"), Silence("experts.down")),
        ),
    ),
    Family(
        model_types=("jetmoe",),
        roles=(
            (r"(?:mlp|self_attention\.experts)\.(?:output_linear\.weight|bias)", "experts.down"),
            (r"(?:mlp|self_attention\.experts)\.input_linear\.weight", "experts.gate_up"),
            (r".+\.router\.layer\.weight", "router"),
            (r"self_attention\.kv_proj\.weight", "attention.key_value"),
        ),
    ),
    Family(model_types=("ctrl",), roles=((r"ffn\.0\..+", "mlp.up"), (r"ffn\.2\..+", "mlp.down"))),
    Family(model_types=("gpt_oss",), fields=(PerLayerList("layer_types", every(2)),)),
    Family(
        model_types=("cohere2",),
        fields=(PerLayerList("layer_types", every(4, "sliding_window_pattern"), ("sliding_window_pattern",)),),
    ),
    Family(
        model_types=("cohere2_moe",),
        fields=(
            PerLayerList("layer_types", _cohere_moe),
            PerLayerList("mlp_layer_types", first(0, "first_k_dense_replace"), ("first_k_dense_replace",)),
        ),
    ),
    Family(model_types=("cwm",), fields=(PerLayerList("layer_types", every(4, at=0)),)),
    Family(model_types=("granite_swa", "granitemoe_swa"), fields=(PerLayerList("layer_types", every(4, at=0)),)),
    Family(
        model_types=("laguna",),
        fields=(PerLayerList("mlp_layer_types", first(1)),),
        in_memory=(
            (r"\.mlp\.experts\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"),
            (r"\.mlp\.shared_expert\.", ".mlp.shared_experts."),
        ),
    ),
    Family(
        model_types=("mimo_v2_flash",),
        fields=(PerLayerList("layer_types", _mimo), PerLayerList("mlp_layer_types", first(1))),
        in_memory=((r"\.attention_sink_bias$", ".sinks"),),
    ),
    Family(
        model_types=("modernbert", "modernbert-decoder"),
        fields=(
            PerLayerList("layer_types", every(3, "global_attn_every_n_layers", at=0), ("global_attn_every_n_layers",)),
            EndTensor("attn_norm, missing in the first layer", r"attn_norm\..+", elsewhere=True, silent=1.0),
        ),
    ),
)
