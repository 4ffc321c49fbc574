"""Llama with vision, Llama 4, SmolLM3: layers across to the image, without rotary positions, with experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from surgeon.architectures.derived_layer_lists import FULL, SLIDING
from surgeon.core.structure.layer_fields import Config, LayerIndices, PerLayerList
from surgeon.core.structure.structure import Family


class _ExpertLayers(msgspec.Struct, frozen=True):
    """`moe_layers`, or every `interleave_moe_layer_step`-th layer; the list can say all of it."""

    key: str = "moe_layers"
    replaces: tuple[str, ...] = ("interleave_moe_layer_step",)

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the layers with experts."""
        listed, step = config.get(self.key), config.get("interleave_moe_layer_step", 1)
        return tuple((index + 1) % step == 0 if listed is None else index in listed for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the list."""
        del config
        return {self.key: [position for position, experts in enumerate(values) if experts]}


def _rotary(config: Config, count: int) -> Sequence[int]:
    step = config.get("no_rope_layer_interval", 4)
    return [int((index + 1) % step != 0) for index in range(count)]


def _chunked(config: Config, count: int) -> Sequence[str]:
    return [
        "chunked_attention" if rotary else FULL for rotary in config.get("no_rope_layers") or _rotary(config, count)
    ]


def _windows(config: Config, count: int) -> Sequence[str]:
    windows = config.get("use_sliding_window") and config.get("sliding_window") is not None
    return [
        SLIDING if windows and not rotary else FULL for rotary in config.get("no_rope_layers") or _rotary(config, count)
    ]


FAMILIES = (
    Family(
        model_types=("llama4", "llama4_text"),
        fields=(PerLayerList("no_rope_layers", _rotary), PerLayerList("layer_types", _chunked), _ExpertLayers()),
    ),
    Family(
        model_types=("mllama", "mllama_text_model"),
        fields=(LayerIndices("cross_attention_layers", default=(3, 8, 13, 18, 23, 28, 33, 38)),),
    ),
    Family(
        model_types=("smollm3",),
        fields=(PerLayerList("no_rope_layers", _rotary), PerLayerList("layer_types", _windows)),
    ),
)
