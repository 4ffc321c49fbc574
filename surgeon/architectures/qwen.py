"""Qwen2 and Qwen3: a sliding window that starts at a layer number where `layer_types` is not written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.core.layer_fields import EachLayer
from surgeon.core.structure import Family


def _window_from_max_window_layers(config: Mapping[str, Any], count: int) -> Sequence[str] | None:
    if not config.get("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return None
    start = config.get("max_window_layers", 28)
    return ["sliding_attention" if index >= start else "full_attention" for index in range(count)]


FAMILY = Family(
    model_types=("qwen2", "qwen3"),
    fields=(EachLayer("layer_types", derived=_window_from_max_window_layers),),
)
