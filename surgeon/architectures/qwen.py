"""Qwen: windows that begin at a layer number, every so many layers with experts or with full attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from surgeon.architectures.derived_layer_lists import FULL, LINEAR, SLIDING, every, where
from surgeon.core.structure.layer_dependencies import OrderedLayers
from surgeon.core.structure.layer_fields import Config, LayerIndices, PerLayerList
from surgeon.core.structure.structure import Family


class DenseLayers(msgspec.Struct, frozen=True):
    """`mlp_only_layers` and `decoder_sparse_step` together say which layers lack experts; the list can say it all."""

    default: tuple[int, ...] = ()
    key: str = "mlp_only_layers"
    replaces: tuple[str, ...] = ("decoder_sparse_step",)

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the layers without experts."""
        dense, step = config.get(self.key), config.get("decoder_sparse_step", 1)
        dense = self.default if dense is None else dense
        return tuple(index in dense or (index + 1) % step != 0 for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the list; a step other than 1 is no longer needed."""
        steps = {"decoder_sparse_step": 1} if config.get("decoder_sparse_step", 1) != 1 else {}
        return {self.key: [position for position, dense in enumerate(values) if dense], **steps}


def _alternating(config: Config, count: int) -> Sequence[str]:
    start, on = config.get("max_window_layers", 28), config.get("use_sliding_window")
    return [SLIDING if on and index % 2 == 0 and index < start else FULL for index in range(count)]


def _tables(config: Config, count: int) -> Sequence[int] | None:
    del count
    return [number - 1 for number in config.get("ple_layer_ids") or ()]


def _flint(config: Config, count: int) -> Sequence[str]:
    del config
    return [FULL if index < 2 or index % 4 == 1 or index == count - 1 else SLIDING for index in range(count)]


_WINDOW = PerLayerList("layer_types", where(28, "max_window_layers", switch="use_sliding_window"))
_INTERVAL = PerLayerList("layer_types", every(4, "full_attention_interval", other=LINEAR), ("full_attention_interval",))

FAMILIES = (
    Family(model_types=("qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text"), fields=(_WINDOW,)),
    Family(
        model_types=("qwen2_vl", "qwen2_5_vl"),
        fields=(_WINDOW,),
        in_memory=(
            (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
            (r"^visual\.", "model.visual."),
        ),
    ),
    Family(model_types=("qwen2_moe",), fields=(PerLayerList("layer_types", _alternating), DenseLayers())),
    Family(model_types=("qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text"), fields=(DenseLayers(),)),
    Family(model_types=("qwen3_next",), fields=(_INTERVAL, DenseLayers())),
    Family(model_types=("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), fields=(_INTERVAL,)),
    Family(
        model_types=("qwen4_exp", "qwen4_exp_text"),
        fields=(
            PerLayerList(
                "layer_types",
                every(4, "full_attention_interval", special="indexed_attention", other=LINEAR),
                ("full_attention_interval",),
            ),
            LayerIndices("ple_layer_ids", first=1),
            OrderedLayers("ple_layer_ids", "layers with n-gram tables, whose sizes grow from one to the next", _tables),
        ),
        in_memory=((r"\.ngram_embedding\.shard_\d+\.", ".ngram_embedding."),),
        no_identity="its layers mix several streams with weights that no values of its tensors turn into an identity",
    ),
    Family(
        model_types=("flint",),
        fields=(PerLayerList("layer_types", _flint), DenseLayers((0, 1))),
        in_memory=((r"\.self_attn\.softmax_offset$", ".self_attn.sinks"),),
    ),
)
