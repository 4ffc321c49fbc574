"""Hybrids of state-space, convolution and attention layers: which is which, when a config does not list it."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.architectures.derived_layer_lists import FULL, LINEAR, every, first
from surgeon.architectures.shared import MOE_IS_MLP, POST_NORM
from surgeon.core.structure.boundary_layer_tensors import SharedTensors
from surgeon.core.structure.layer_count_fields import FirstCount, Period
from surgeon.core.structure.layer_dependencies import OrderedLayers
from surgeon.core.structure.layer_fields import Config, LayerIndices, LayerPattern, PerLayerList, RepeatingList
from surgeon.core.structure.structure import Family, Silence


def _lfm2(config: Config, count: int) -> Sequence[str]:
    full = config.get("full_attn_idxs")
    return [FULL if full is None or index in full else "conv" for index in range(count)]


def _lfm3(config: Config, count: int) -> Sequence[str]:
    del config
    return [
        FULL if index % 4 == 2 else "sliding_attention" if index % 4 == 0 and index else "conv"
        for index in range(count)
    ]


def _kimi(config: Config, count: int) -> Sequence[str]:
    listed = config.get("linear_attn_config") or {}
    if "full_attn_layers" in listed and "kda_layers" in listed:  # numbered from 1
        return [FULL if index + 1 in listed["full_attn_layers"] else LINEAR for index in range(count)]
    return [FULL if index and index % 4 == 0 else LINEAR for index in range(count)]


def _zamba_kinds(config: Config, count: int) -> Sequence[str]:
    period, offset = config.get("attn_layer_period", 6), config.get("attn_layer_offset", 4)
    rest = ["hybrid" if index % period == offset else LINEAR for index in range(count - 3)]
    return [LINEAR, LINEAR, "hybrid", *rest]


def _zamba_hybrids(config: Config, count: int) -> Sequence[int]:
    kinds = config.get("layers_block_type") or _zamba_kinds(config, count)
    return [index for index, kind in enumerate(kinds) if kind == "hybrid"]


def _zamba2_kinds(config: Config, count: int) -> Sequence[str] | None:
    del config
    runs = (6, 5, 5, 5, 5, 5, 5, 4, 3)  # of layers without attention, each with a hybrid behind it
    kinds = [kind for run in runs for kind in (*[LINEAR] * run, "hybrid")] + [LINEAR] * 2
    return kinds if len(kinds) == count else None


def _zamba2_hybrids(config: Config, count: int) -> Sequence[int]:
    kinds = config.get("layers_block_type") or _zamba2_kinds(config, count) or ()
    return [index for index, kind in enumerate(kinds) if kind == "hybrid"]


_MAMBA = r"(?:.+\.)?mamba\."

FAMILIES = (
    Family(model_types=("mamba", "mamba2", "falcon_mamba")),
    Family(model_types=("bamba",), fields=(LayerIndices("attn_layer_indices"),)),
    Family(
        model_types=("jamba",),
        fields=(
            Period("attn_layer_period", "attn_layer_offset", 8, 4, ("layers_block_type", "layer_types")),
            Period("expert_layer_period", "expert_layer_offset", 2, 1),
        ),
    ),
    Family(
        model_types=("nemotron_h",),
        fields=(LayerPattern("hybrid_override_pattern"),),
        in_memory=((r"^backbone\.", "model."), (r"\.mixer\.experts\.\d+\.up_proj\.weight$", ".mixer.experts.up_proj")),
    ),
    Family(
        model_types=("recurrent_gemma",),
        fields=(RepeatingList("block_types", ("recurrent", "recurrent", "attention")),),
    ),
    Family(model_types=("lfm2",), fields=(PerLayerList("layer_types", _lfm2, ("full_attn_idxs",)),)),
    Family(model_types=("lfm2_moe",), fields=(FirstCount("num_dense_layers", 2),)),
    Family(
        model_types=("lfm3",),
        roles=((r"post_operator_norm\.weight", "norm.post_attention"), (r"post_ffn_norm\.weight", "norm.post_mlp")),
        silences=((Silence("norm.post_attention"), Silence("norm.post_mlp")),),
        fields=(PerLayerList("layer_types", _lfm3),),
        in_memory=((r"\.self_attn\.gate_proj\.", ".self_attn.g_proj."),),
    ),
    Family(
        model_types=("kimi_linear",),
        in_memory=(
            MOE_IS_MLP,
            (r"\.self_attn\.[qkv]_conv1d\.", ".self_attn.conv1d."),
            (r"\.self_attn\.(A_log|dt_bias|f_[ab]_proj\.)", r".self_attn.forget_gate.\1"),
        ),
        fields=(
            PerLayerList("layer_types", _kimi),
            PerLayerList("mlp_layer_types", first(1, "first_k_dense_replace"), ("first_k_dense_replace",)),
        ),
    ),
    Family(
        model_types=("minimax",),
        roles=((r"self_attn\.(?:slope_rate|\w+_decay)", "mixer.decay"),),
        fields=(PerLayerList("layer_types", every(2, at=0, other=LINEAR), begins_with=FULL),),
        in_memory=(MOE_IS_MLP,),
        no_identity=POST_NORM,
    ),
    Family(
        model_types=("zamba",),
        roles=((rf"{_MAMBA}out_proj\.weight", "mixer.output"), (r"shared_transf\..+", "shared")),
        silences=((Silence("mixer.output"),),),
        fields=(
            PerLayerList("layers_block_type", _zamba_kinds),
            SharedTensors("the shared block", r"shared_transf\..+", _zamba_hybrids),
        ),
    ),
    Family(
        model_types=("zamba2",),
        roles=((rf"{_MAMBA}out_proj\.weight", "mixer.output"), (r"shared_transformer\..+", "shared")),
        silences=((Silence("mixer.output"),),),
        fields=(
            PerLayerList("layers_block_type", _zamba2_kinds),
            LayerIndices("hybrid_layer_ids"),
            OrderedLayers(
                "layers_block_type",
                "hybrid layers, each with an adapter of its own in the blocks that they share",
                _zamba2_hybrids,
                complete=True,
            ),
        ),
    ),
)
