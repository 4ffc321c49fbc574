"""DeepSeek V4: compressed attention of two kinds, experts chosen by hash in front, several residual streams."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.core.layer_fields import Config, EachLayer
from surgeon.core.structure import Family

_CSA, _HCA, _SLIDING = "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"
_OF_RATIO = {0: _SLIDING, 4: _CSA, 128: _HCA}


def _attention(config: Config, count: int) -> Sequence[str]:
    ratios = config.get("compress_ratios")
    if ratios is not None:
        return [_OF_RATIO[ratio] for ratio in ratios[:count]]
    return [_HCA if index < 2 or index % 2 else _CSA for index in range(count)]  # noqa: PLR2004 - as the config class has it


def _experts(config: Config, count: int) -> Sequence[str]:
    number = config.get("num_hash_layers")
    number = 3 if number is None else number
    return ["hash_moe" if index < number else "moe" for index in range(count)]


FAMILY = Family(
    model_types=("deepseek_v4",),
    roles=(
        (r"attn\.wo_b\.weight", "attention.output"),
        (r"ffn\.gate\.tid2eid", "router"),
    ),
    fields=(
        EachLayer("layer_types", _attention, ("compress_ratios",)),
        EachLayer("mlp_layer_types", _experts, ("num_hash_layers",)),
    ),
    no_identity="its layers mix several streams with weights that no values of its tensors turn into an identity",
)
