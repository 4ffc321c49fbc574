"""Names of the tensors that stand beside a quantised weight, such as scales and zeros, and which weight they are of.

A weight of several tensors goes by the name that it has where it is not quantised: `mlp.down_proj.weight` is stored as
`mlp.down_proj.qweight` by GPTQ, `mlp.experts.down_proj` as `mlp.experts.down_proj_blocks` in MXFP4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

from surgeon.core.checkpoint.tensors import TensorType

_OF_WEIGHT = re.compile(
    r"(?P<weight>.+\.weight)"
    r"(?:_(?P<kind>scale|scale_inv|scale_2|scales|global_scale|zero_point|zeros|g_idx|shape|offset|format)"
    r"|\.(?P<state>(?:nested_)?absmax|(?:nested_)?quant_map|quant_state\..+|bitmask|compressed|row_offsets))"
)
"""compressed-tensors, ModelOpt, FP8 of transformers, bitsandbytes."""
_OF_EXPERTS = re.compile(
    r"(?P<weight>(?:.+\.)?(?:gate_up_proj|gate_proj|up_proj|down_proj|w13|w1|w2|w3))"
    r"_(?P<kind>(?:weight_|input_)?scale|(?:weight_)?scale_inv|(?:weight_)?scale_2|scales|(?:weight_)?zero_point)"
)
"""Parameters that are no module of their own: experts that are stored stacked."""
_OF_MODULE = re.compile(
    r"(?P<module>.+)\.(?P<kind>qzeros|g_idx|SCB|weights_scaling_factor|deq_scale|codebooks|pre_quant_scale"
    r"|input_scale|input_zero_point|input_global_scale|activation_scale|activation_scaling_factor|output_scale"
    r"|output_zero_point)"
)
_SAYS_NOTHING_OF_WEIGHTS = ("input_", "activation_", "output_", "pre_quant_")
_PACKED = re.compile(r"(?P<module>.+)\.(?:qweight|weight_packed|W_q)|(?P<experts>.+)_(?:blocks|packed)")
_BESIDE_PACKED = ("scale", "scales", "zero", "zeros", "biases", "codes", "meta")
"""Words that may mean anything, and mean this beside a weight that is packed."""
_SMALL_FLOATS = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4")
_INTEGERS = ("I8", "U8", "I32", "U32", "I64", "U64")
SCALES = (
    "scale", "scale_inv", "scales", "weight_scale", "weight_scale_inv", "absmax", "SCB", "weights_scaling_factor",
    "deq_scale", "codebooks", "global_scale",
)  # fmt: skip
"""Kinds of companions without which a packed weight has no values."""


class PackedWeight(msgspec.Struct, frozen=True):
    """A weight that is stored as more than its values: packed, or beside scales.

    name: what it is called where it is not quantised.   stored: the tensor that holds its numbers.
    parts: the tensors beside it, by kind, such as `scale_inv`.
    """

    name: str
    stored: str
    parts: Mapping[str, str]

    @property
    def scaled(self) -> bool:
        """Whether a scale is there."""
        return any(kind in SCALES for kind in self.parts)


def companion_of(name: str) -> tuple[str, str] | None:
    """Return the weight that a tensor stands beside and its kind, by its name alone; None if it tells nothing."""
    if match := _OF_WEIGHT.fullmatch(name):
        return match["weight"], match["kind"] or match["state"]
    if match := _OF_EXPERTS.fullmatch(name):
        return match["weight"], match["kind"]
    match = _OF_MODULE.fullmatch(name)
    return (f"{match['module']}.weight", match["kind"]) if match else None


def is_text(name: str) -> bool:
    """Whether a tensor holds text or a sparse form, whose length says nothing of how a layer is built."""
    companion = companion_of(name)
    return companion is not None and companion[1].startswith(("quant_state.", "compressed", "bitmask", "row_offsets"))


def plain_name(name: str) -> str:
    """Return the name of the weight that a tensor is part of, or its own."""
    if companion := companion_of(name):
        return companion[0]
    match = _PACKED.fullmatch(name)
    if match is None:
        return name
    return match["experts"] or f"{match['module']}.weight"


def packed_weights(types: Mapping[str, TensorType]) -> dict[str, PackedWeight]:
    """Return the quantised weights among tensors by name, in their order; none where nothing is quantised."""
    companions = dict(_companions(types))
    beside: dict[str, dict[str, str]] = {}
    for name, (weight, kind) in companions.items():
        beside.setdefault(weight, {})[kind] = name
    found: dict[str, PackedWeight] = {}
    for name, one in types.items():
        weight = plain_name(name)
        parts = beside.get(weight, {})
        if name in companions or _stands_near(name, types):
            continue
        if _is_packed(name, one) or (any(map(_tells, parts)) and len(one.shape) > 1):
            found[weight] = PackedWeight(weight, name, {**parts, **_near(weight, types)})
    return found


def companions_among(types: Mapping[str, TensorType]) -> frozenset[str]:
    """Return the tensors that are no weights but stand beside some."""
    near = (part for weight in packed_weights(types).values() for part in weight.parts.values())
    return frozenset((*dict(_companions(types)), *near))


def _companions(types: Mapping[str, TensorType]) -> Iterator[tuple[str, tuple[str, str]]]:
    return ((name, companion) for name in types if (companion := companion_of(name)))


def _tells(kind: str) -> bool:
    """Whether a companion of this kind shows that its weight is quantised."""
    return not kind.startswith(_SAYS_NOTHING_OF_WEIGHTS)


def _is_packed(name: str, one: TensorType) -> bool:
    if one.dtype in _SMALL_FLOATS:
        return True
    return one.dtype in _INTEGERS and (name.endswith(".weight") or _PACKED.fullmatch(name) is not None)


def _near(weight: str, types: Mapping[str, TensorType]) -> dict[str, str]:
    module = weight.removesuffix(".weight")
    names = ((kind, f"{module}.{kind}") for kind in _BESIDE_PACKED) if module != weight else ()
    return {kind: name for kind, name in names if name in types}


def _stands_near(name: str, types: Mapping[str, TensorType]) -> bool:
    module, _, kind = name.rpartition(".")
    if kind not in _BESIDE_PACKED:
        return False
    return any(
        weight in types and _is_packed(weight, types[weight])
        for weight in (f"{module}.weight", f"{module}.qweight", f"{module}.W_q")
    )
