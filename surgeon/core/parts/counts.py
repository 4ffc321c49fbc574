"""The config fields that count the parts of a layer: which they are, and what they say after a cut.

Found by their values: a field of a known name that says how many parts the tensors have. Families declare theirs where
that does not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from surgeon.core.parts.division import PartKind
from surgeon.core.parts.heads import head_width
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError

_HEADS, _KV_HEADS, _HEAD_DIM = "num_attention_heads", "num_key_value_heads", "head_dim"
_FIELDS: Mapping[PartKind, tuple[str, ...]] = {
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "neurons": (
        "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff", "dff", "dim_ff", "d_inner",
        "encoder_ffn_dim", "decoder_ffn_dim", "dense_intermediate_size", "intermediate_size_mlp",
        "prefix_dense_intermediate_size", "feed_forward_size",
    ),
    "heads": (_KV_HEADS, _HEADS, _HEAD_DIM),
}  # fmt: skip
TOP_K = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts",
)  # fmt: skip
"""Fields that say how many experts a token goes to."""
_GROUPS = ("n_group", "num_expert_group")
_CHOSEN_GROUPS = "topk_group"


def field_names(structure: Structure, kind: PartKind) -> tuple[str, ...]:
    """Return the names of config fields that may count a kind of part."""
    declared = structure.family.parts.counted_by.get(kind)
    return (declared,) if declared else _FIELDS[kind]


def count_fields(structure: Structure, stack: Stack, kind: PartKind, count: int) -> tuple[str, ...]:
    """Return the config fields, within the stack's part, that say how many parts of a kind a layer has.

    Raises:
        ArchitectureError: none does, or several of different meaning may.
    """
    config = structure.stack_config(stack)
    if kind == "heads":
        _check_heads(config, count)
        return (_HEADS, _KV_HEADS, _HEAD_DIM)
    declared = structure.family.parts.counted_by.get(kind)
    names = field_names(structure, kind)
    own = [name for name in names if name.startswith(f"{stack.name}_")]
    found = [name for name in own or names if says(config, name, count)]
    if declared and not found and says(config, declared, None):
        return (declared,)  # left out where it follows from others; it is written then
    if not found:
        raise ArchitectureError(
            f"none says that a layer has {count} {kind}",
            where=f"config fields {', '.join(own or names)}",
            allowed="one that counts them",
            hint=f"models of type {structure.model_type} cannot be cut there",
        )
    if kind == "neurons" and len(found) > 1:
        raise ArchitectureError(
            f"each say {count}, and it is not known which of them is the width of the MLP",
            where=f"config fields {', '.join(found)}",
            allowed="one of them alone",
            hint=f"models of type {structure.model_type} cannot be cut there",
        )
    return tuple(found)


def says(config: Mapping[str, Any], field: str, value: Any) -> bool:
    """Whether a field, dotted where it is nested, has a value; None also means that it is absent."""
    part: Any = config
    for key in field.split("."):
        part = part.get(key) if isinstance(part, Mapping) else None
    return bool(part == value) and not isinstance(part, bool)


def _check_heads(config: Mapping[str, Any], count: int) -> None:
    heads = config.get(_HEADS)
    groups = config.get(_KV_HEADS, heads)
    if groups != count or not isinstance(heads, int):
        raise ArchitectureError(
            f"says {groups}, and the tensors have {count} key-value heads",
            where=f"config field {_KV_HEADS if _KV_HEADS in config else _HEADS}",
            allowed="a config and tensors that agree",
            hint="layers whose heads are of several widths cannot be cut there",
        )


def counted(config: Mapping[str, Any], kind: PartKind, fields: Iterable[str], count: int) -> dict[str, int]:
    """Return what the fields say of layers with `count` parts; `config` is the base's."""
    if kind != "heads":
        return dict.fromkeys(fields, count)
    queries = config[_HEADS] // config.get(_KV_HEADS, config[_HEADS])
    # Said in full: it would follow from the number of heads that are left.
    return {_HEADS: count * queries, _KV_HEADS: count, _HEAD_DIM: head_width(config)}


def experts_per_token(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the field that says how many experts a token goes to, and its value; None where none is known."""
    found = ((name, config[name]) for name in TOP_K if isinstance(config.get(name), int))
    nested = (
        (f"{key}.{name}", part[name])
        for key, part in config.items()
        if isinstance(part, Mapping)
        for name in TOP_K
        if isinstance(part.get(name), int)
    )
    return next((*found, *nested).__iter__(), None)


def expert_groups(config: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """Return the field that divides experts into groups, how many there are, and how many a token may use of them."""
    field = next((name for name in _GROUPS if isinstance(config.get(name), int)), None)
    if field is None or config[field] < 2:
        return None
    chosen = config.get(_CHOSEN_GROUPS)
    return field, config[field], chosen if isinstance(chosen, int) else config[field]
