"""Gemma: norms that multiply by 1 + w, from Gemma 2 on also after each sublayer; sliding and full attention in turn."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from surgeon.architectures.derived_layer_lists import FULL, every
from surgeon.architectures.shared import SANDWICH, post_norms
from surgeon.core.structure.layer_count_fields import LastCount
from surgeon.core.structure.layer_dependencies import ReadsEarlierLayer
from surgeon.core.structure.layer_fields import Config, Derived, LayerField, PerLayerList
from surgeon.core.structure.structure import Family, OutsideSlices, Silence

_SLICES = (
    OutsideSlices(r"(?:^|\.)embed_tokens_per_layer\.", 1, "hidden_size_per_layer_input"),
    OutsideSlices(r"(?:^|\.)per_layer_model_projection\.", 0, "hidden_size_per_layer_input"),
)


def _shared_kv(layer_types: Derived, default: int) -> tuple[LayerField, ...]:
    """The last layers use the keys and values of the last layer of their kind that has its own."""

    def lenders(config: Config, count: int) -> Sequence[tuple[Hashable, bool]]:
        own = count - (config.get("num_kv_shared_layers") or (default if "num_kv_shared_layers" not in config else 0))
        kinds = config.get("layer_types") or layer_types(config, count) or [FULL] * count
        return [(kind, index >= own) for index, kind in enumerate(kinds)]

    return LastCount("num_kv_shared_layers", default), ReadsEarlierLayer(
        "shared keys and values", "num_kv_shared_layers", lenders
    )


def _sparse_start(config: Config, count: int) -> Sequence[float]:
    del config
    number = 10 if count > 10 else 0
    return [0.95] * number + [0.0] * (count - number)


def _sandwich(
    *types: str, value: float, fields: tuple[LayerField, ...], slices: tuple[OutsideSlices, ...] = ()
) -> Family:
    return Family(model_types=types, roles=SANDWICH, fields=fields, silences=post_norms(value), outside_slices=slices)


_GEMMA3N = every(5)
_GEMMA4 = every(6, last=FULL)
_GEMMA4_ROLES = (
    *SANDWICH,
    (r"(?:ple_block\.)?post_per_layer_input_norm\.weight", "norm.post_input"),
    (r"layer_scalar", "residual.scale"),
)
_SCALE = Silence("residual.scale", 1.0)
_GEMMA4_SILENCES = tuple(
    (*way, *more)
    for way in post_norms()
    for more in ((Silence("norm.post_input"), _SCALE), (Silence("norm.post_input"),), (_SCALE,), ())
)
"""A layer that lacks the norm takes no input of its own; one that lacks the scale is as if it were 1."""

FAMILIES = (
    Family(model_types=("gemma",)),
    _sandwich("gemma2", value=-1.0, fields=(PerLayerList("layer_types", every(2)),)),
    Family(model_types=("vaultgemma",), fields=(PerLayerList("layer_types", every(2)),)),
    _sandwich(
        "gemma3",
        "gemma3_text",
        value=-1.0,
        fields=(PerLayerList("layer_types", every(6, "sliding_window_pattern"), ("sliding_window_pattern",)),),
    ),
    Family(
        model_types=("gemma3n", "gemma3n_text"),
        fields=(
            PerLayerList("layer_types", _GEMMA3N),
            PerLayerList("activation_sparsity_pattern", _sparse_start),
            *_shared_kv(_GEMMA3N, 15),
        ),
        no_identity="its layers mix four streams with weights that no values of its tensors turn into an identity",
        outside_slices=_SLICES,
    ),
    Family(
        model_types=("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        roles=_GEMMA4_ROLES,
        fields=(PerLayerList("layer_types", _GEMMA4, ends_with=FULL), *_shared_kv(_GEMMA4, 0)),
        silences=_GEMMA4_SILENCES,
        outside_slices=_SLICES,
    ),
    Family(
        model_types=("embedding_gemma2", "embedding_gemma2_text"),
        roles=_GEMMA4_ROLES,
        fields=(
            PerLayerList(
                "layer_types",
                every(6, "sliding_window_pattern", last=FULL),
                ("sliding_window_pattern",),
                ends_with=FULL,
            ),
        ),
        silences=_GEMMA4_SILENCES,
        outside_slices=_SLICES,
    ),
)
