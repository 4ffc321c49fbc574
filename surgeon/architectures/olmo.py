"""OLMo 2 and 3, EXAONE 4: norms only after each sublayer; hybrids with linear attention."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.architectures.derived_layer_lists import FULL, LINEAR, every, first
from surgeon.architectures.shared import SANDWICH, post_norms
from surgeon.core.structure.layer_fields import Config, PerLayerList
from surgeon.core.structure.structure import Family


def _hybrid(config: Config, count: int) -> Sequence[str]:
    kinds = every(4, other=LINEAR)(config, count) or []
    return kinds if FULL in kinds else [*kinds[:-1], FULL]


_EXAONE = PerLayerList("layer_types", every(4, "sliding_window_pattern"))

FAMILIES = (
    Family(model_types=("olmo2", "flex_olmo"), roles=SANDWICH, silences=post_norms()),
    Family(
        model_types=("olmo3",), roles=SANDWICH, silences=post_norms(), fields=(PerLayerList("layer_types", every(4)),)
    ),
    Family(
        model_types=("olmo_hybrid",),
        fields=(PerLayerList("layer_types", _hybrid, needs=(LINEAR, FULL)),),
        in_memory=(
            (r"\.attention_layer_norm\.", ".input_layernorm."),
            (r"\.feedforward_layer_norm\.", ".post_attention_layernorm."),
            (r"\.linear_attn\.[qkv]_conv1d\.", ".linear_attn.conv1d."),
        ),
    ),
    Family(model_types=("exaone4",), roles=SANDWICH, silences=post_norms(), fields=(_EXAONE,)),
    Family(
        model_types=("exaone_moe",),
        in_memory=((r"\.mlp\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"),),
        fields=(
            _EXAONE,
            PerLayerList("mlp_layer_types", first(1, "first_k_dense_replace"), ("first_k_dense_replace",)),
        ),
    ),
)
