"""A layer as key-value heads, each with the query heads that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.core.parts.division import Cut, Division, cannot_cut
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import Structure
from surgeon.errors import ArchitectureError

_QUERY, _KEY, _VALUE = "attention.query", "attention.key", "attention.value"
_FUSED, _OUT = "attention.qkv", "attention.output"
_NORMS = ("norm.query", "norm.key")


def divide_heads(structure: Structure, layout: Layout, config: Mapping[str, Any]) -> Division:
    """Return a layer as key-value heads; `config` is its stack's part of the base's config.

    Raises:
        ArchitectureError: a tensor of its attention does not divide into heads, or is not known to.
    """
    roles = structure.roles_of(layout)
    width = head_width(config)
    attention = {name: role for name, role in roles.items() if role.startswith("attention")}
    matrices = {role: name for name, role in attention.items() if name.endswith(".weight")}
    queries, count = _heads(structure, layout, matrices, width)
    group = queries // count * width
    cuts: dict[str, Cut] = {}
    for name, role in roles.items():
        shape = layout.types[name].shape
        if role in _NORMS and shape != (width,):
            raise cannot_cut("heads", name, f"is {list(shape)}: it normalises all heads together")
        if role.startswith(("mixer", "cross_attention")):
            raise cannot_cut("heads", name, "is no attention of a layer to itself, and may count heads by other fields")
        if role.startswith("attention"):
            cut = _cut(structure, name, role, shape, group, width, count)
            cuts |= {} if cut is None else {name: cut}
    if not structure.family.parts.reads_head_dim:
        raise ArchitectureError(
            "transformers does not read the width of a head there, and would divide the hidden size by the heads",
            where=f"config field head_dim, model_type {structure.model_type}",
            allowed="families whose attention takes head_dim from the config",
            hint="narrow the MLP instead, or prune layers",
        )
    return Division("heads", count, cuts, {})


def head_width(config: Mapping[str, Any]) -> int:
    """Return the width of a head.

    Raises:
        ArchitectureError: the config does not say it.
    """
    width, heads, hidden = (config.get(key) for key in ("head_dim", "num_attention_heads", "hidden_size"))
    if isinstance(width, int) and width > 0:
        return width
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0 and hidden % heads == 0:
        return hidden // heads
    raise ArchitectureError(
        "is not said, nor num_attention_heads and hidden_size from which it follows",
        where="config field head_dim",
        allowed="configs that say the width of a head",
        hint="narrow the MLP instead, or prune layers",
    )


def _heads(structure: Structure, layout: Layout, matrices: Mapping[str, str], width: int) -> tuple[int, int]:
    """Return how many query heads and how many key-value heads a layer has."""

    def size(role: str, *, inputs: bool = False) -> int:
        shape = layout.types[matrices[role]].shape
        return shape[int((role in structure.family.transposed) != inputs)] if len(shape) == 2 else 0

    if _OUT not in matrices:
        raise _lacks(structure, layout, _OUT)
    queries = size(_OUT, inputs=True) // width
    if _FUSED in matrices:
        rows = size(_FUSED) // width
        count = rows // 3 if structure.family.fused_by_head else (rows - queries) // 2
    else:
        missing = next((role for role in (_QUERY, _KEY, _VALUE) if role not in matrices), None)
        if missing:
            raise _lacks(structure, layout, missing)
        count = size(_KEY) // width
    if count < 1 or queries % count or (structure.family.fused_by_head and queries != count):
        name = matrices[_OUT]
        raise cannot_cut("heads", name, f"{queries} query heads of {width} do not go with {count} key-value heads")
    return queries, count


def _lacks(structure: Structure, layout: Layout, role: str) -> ArchitectureError:
    del layout
    return ArchitectureError(
        f"a layer has no tensor of role {role}, so its heads cannot be cut",
        where=f"model_type {structure.model_type}",
        allowed="layers with query, key, value and output of their own",
        hint="narrow the MLP instead, or prune layers",
    )


def _cut(
    structure: Structure, name: str, role: str, shape: tuple[int, ...], group: int, width: int, count: int
) -> Cut | None:
    """Return how a tensor of attention is divided; None for the bias of its output."""
    out = 1 if role in structure.family.transposed else 0
    if role == _OUT and len(shape) == 1 and name.endswith("bias"):
        return None
    widths: dict[str, tuple[int, ...]] = {_QUERY: (group,), _KEY: (width,), _VALUE: (width,), _OUT: (group,)}
    if role in structure.family.fused:
        widths[_FUSED] = (group + 2 * width,) if structure.family.fused_by_head else (group, width, width)
    if role in widths and len(shape) in (1, 2):
        axis = 0 if len(shape) == 1 else 1 - out if role == _OUT else out
        cut = Cut(axis, widths[role])
        if shape[axis] == cut.length(count):
            return cut
    raise cannot_cut("heads", name, f"is {list(shape)}, of {count} key-value heads of {width}, or is not known")
