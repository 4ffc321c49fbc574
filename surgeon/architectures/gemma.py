"""Gemma 2 and 3: norms before and after each sublayer that multiply by 1 + w; sliding and full attention in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.core.layer_fields import EachLayer
from surgeon.core.structure import Family, Silence


def _alternating(config: Mapping[str, Any], count: int) -> Sequence[str]:
    period = 2 if config.get("model_type") == "gemma2" else config.get("sliding_window_pattern", 6)
    return ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(count)]


FAMILY = Family(
    model_types=("gemma2", "gemma3", "gemma3_text"),
    roles=(
        (r"post_attention_layernorm\.weight", "norm.post_attention"),
        (r"pre_feedforward_layernorm\.weight", "norm.mlp"),
        (r"post_feedforward_layernorm\.weight", "norm.post_mlp"),
    ),
    fields=(EachLayer("layer_types", derived=_alternating),),
    silences=((Silence("norm.post_attention", -1.0), Silence("norm.post_mlp", -1.0)),),
)
