"""Hunyuan V3, and V4: several residual streams; some layers look at the tokens that a layer before them chose."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from surgeon.architectures.derived_layer_lists import first
from surgeon.core.structure.layer_dependencies import ReadsEarlierLayer
from surgeon.core.structure.layer_fields import Config, PerLayerList
from surgeon.core.structure.structure import Family


def _indexers(config: Config, count: int) -> Sequence[str]:
    del config
    return ["full" if index == 0 or (index - 1) % 4 == 0 else "shared" for index in range(count)]


def _choosers(config: Config, count: int) -> Sequence[tuple[Hashable, bool]]:
    return [("choice", kind == "shared") for kind in config.get("indexer_types") or _indexers(config, count)]


_STREAMS = tuple(
    (rf"\.hc_pre\.hc_{stored}_layer\.hc_(\w+)$", rf".{loaded}_hc.\1")
    for stored, loaded in (("attn", "attn"), ("mlp", "ffn"))
)

FAMILIES = (
    Family(
        model_types=("hy_v3",),
        fields=(PerLayerList("mlp_layer_types", first(1)),),
        in_memory=(
            (r"\.mlp\.expert_bias$", ".mlp.e_score_correction_bias"),
            (r"\.mlp\.router\.gate\.", ".mlp.gate."),
            (r"\.mlp\.shared_mlp\.", ".mlp.shared_experts."),
        ),
    ),
    Family(
        model_types=("hy_v4",),
        in_memory=(
            *_STREAMS,
            (r"\.hc_pre\.hc_head\.hc_head_(\w+)$", r".hc_head.hc_\1"),
            (r"\.learnable_sink_param$", ".sinks"),
            (r"\.linear_gate\.", ".gate_proj."),
        ),
        fields=(
            PerLayerList("mlp_layer_types", first(1)),
            PerLayerList("indexer_types", _indexers),
            ReadsEarlierLayer("choice of tokens", "indexer_types", _choosers),
        ),
        no_identity="its layers mix several streams with weights that no values of its tensors turn into an identity",
    ),
)
