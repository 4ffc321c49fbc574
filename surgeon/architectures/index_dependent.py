"""Families whose mathematics depends on a layer's number or on the layer before it, and no config field says so."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from surgeon.architectures.derived_layer_lists import always, every, first
from surgeon.core.structure.boundary_layer_tensors import EndTensor
from surgeon.core.structure.layer_dependencies import IndexDependent
from surgeon.core.structure.layer_fields import Config, PerLayerList
from surgeon.core.structure.structure import Family, Silence
from surgeon.errors import ArchitectureError


class _DepthScale(msgspec.Struct, frozen=True):
    """`scale_depth`: each sublayer is scaled by it over the root of the layer count, so it changes with the count."""

    default: float
    key: str = "scale_depth"
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the scale of each layer."""
        value = config.get(self.key, self.default)
        value = math.sqrt(count) if value is None else value
        return (value / math.sqrt(count),) * count

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the number that gives the same scale with the new count."""
        del config
        root, scale = math.sqrt(len(values)), values[0]
        near = scale * root
        for candidate in (near, math.nextafter(near, math.inf), math.nextafter(near, 0.0)):
            if _single(candidate / root) == _single(scale):
                return {self.key: candidate}
        raise ArchitectureError(
            f"can give no scale of exactly {scale} to {len(values)} layers",
            where=f"config field {self.key}",
            allowed="another number of layers",
            hint="remove or insert one layer more or less",
        )


def _single(number: float) -> bytes:
    """Return a number as torch multiplies by it: in single precision, for tensors of that precision and of half."""
    return struct.pack("<f", number)


def _inkling(config: Config, count: int) -> Sequence[str]:
    local = config.get("local_layer_ids")
    return [
        "hybrid_sliding" if (index in local if local is not None else (index + 1) % 6) else "hybrid"
        for index in range(count)
    ]


FAMILIES = (
    Family(
        model_types=("beam",),
        fields=(
            PerLayerList("layer_types", every(6, last="full_attention")),
            PerLayerList("mlp_layer_types", first(3)),
            IndexDependent("scaling of the residual stream by depth", always),
        ),
        no_identity="every layer scales the residual stream by its depth",
    ),
    Family(model_types=("diffllama",), fields=(IndexDependent("lambda_init, which grows with depth", always),)),
    Family(
        model_types=("zaya",),
        roles=(
            (r"post_\w+_residual_scale\.hidden_states_scale", "norm.output"),
            (r"post_\w+_residual_scale\.residual_scale", "residual.scale"),
            (r"post_\w+_residual_scale\.residual_bias", "residual.bias"),
            (r"mlp\.gate\.down_proj\..+", "router.input"),
            (r"mlp\.gate\.router_states_scale", "router.scale"),
        ),
        # A router adds its own states to the scaled ones of the router before, and hands the sum on.
        fields=(
            EndTensor(
                "router_states_scale, missing in the first layer",
                r"mlp\.gate\.router_states_scale",
                elsewhere=True,
                neutral=0.0,
                spare=True,
            ),
        ),
        silences=(
            (
                Silence("norm.output"),
                Silence("residual.scale", 1.0),
                Silence("residual.bias"),
                Silence("router.input"),
                Silence("router.scale", 1.0),
            ),
        ),
    ),
    Family(
        model_types=("hrm_text",),
        unreadable=(
            "num_layers_per_stack",
            "counts the layers of H_module and of L_module alike, which are run in turn many times: "
            "num_hidden_layers counts the calls, and neither field can say that one of the two has lost or won a layer",
        ),
    ),
    Family(model_types=("minicpm3",), fields=(_DepthScale(1.4),)),
    Family(
        model_types=("inkling_text",),
        roles=((r"(?:attn|mlp)_sconv\..+", "mixer.inner"),),
        fields=(
            PerLayerList("layer_types", _inkling, ("local_layer_ids",)),
            PerLayerList("mlp_layer_types", first(0, "dense_mlp_idx"), ("dense_mlp_idx",)),
        ),
    ),
    Family(
        model_types=("inkling2_text",),
        fields=(
            PerLayerList("layer_types", every(6, special="hybrid", other="hybrid_sliding")),
            IndexDependent("n_layers_per_attn_res_block", always, by_count=True),
        ),
        renamed=True,
        no_identity="its attention reads what earlier layers left in the residual stream",
    ),
)
