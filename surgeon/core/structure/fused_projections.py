"""Which rows or columns of a stored weight are one matrix: fused projections apart. Pure arithmetic on shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.core.structure.structure import Structure
from surgeon.errors import ArchitectureError


@dataclass(frozen=True, slots=True)
class Piece:
    """One matrix of a stored weight of two dimensions: the runs [start, stop) along `axis`, in order."""

    role: str
    axis: int
    runs: tuple[tuple[int, int], ...]


def pieces_of(
    structure: Structure, config: Mapping[str, Any], suffix: str, shape: tuple[int, ...]
) -> tuple[Piece, ...]:
    """Return the matrices of a weight (rows, columns) with their roles; `config` is its stack's part of the config.

    Raises:
        ArchitectureError: a fused weight does not divide as the config says.
    """
    role = structure.role(suffix)
    parts = structure.family.fused.get(role)
    if parts is None:
        return (Piece(role, 0, ((0, shape[0]),)),)
    axis = 1 if role in structure.family.transposed else 0
    size = shape[axis]
    if len(parts) == 2:
        half = size // 2
        return (Piece(parts[0], axis, ((0, half),)), Piece(parts[1], axis, ((half, size),)))
    heads = _first(config, "num_attention_heads", "n_head")
    groups = _first(config, "num_key_value_heads") or heads
    if not heads or size % (heads + 2 * groups):
        raise ArchitectureError(
            f"has {size} outputs, which {heads} query and {groups} key and value heads do not divide",
            where=suffix,
            hint="its query, key and value cannot be told apart",
        )
    width = size // (heads + 2 * groups)
    if structure.family.fused_by_head:
        starts = [[(head * 3 + part) * width for head in range(heads)] for part in range(3)]
        return tuple(
            Piece(name, axis, tuple((start, start + width) for start in starts[part]))
            for part, name in enumerate(parts)
        )
    ends = (0, heads * width, (heads + groups) * width, size)
    return tuple(Piece(name, axis, ((ends[part], ends[part + 1]),)) for part, name in enumerate(parts))


def _first(config: Mapping[str, Any], *keys: str) -> int:
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)
