"""Stored weights as the matrices a person means: fused projections apart, experts one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch

from surgeon.core.structure import Structure
from surgeon.errors import ArchitectureError


class StoredMatrix:
    """One weight matrix of shape (rows, columns), with its spectrum on demand."""

    def __init__(self, weight: torch.Tensor) -> None:
        """Keep the weight in its own dtype; (rows, columns), as stored."""
        self.weight = weight

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (int(self.weight.shape[0]), int(self.weight.shape[1]))

    @cached_property
    def singular_values(self) -> torch.Tensor:
        """All singular values in float64, largest first.

        From the eigenvalues of the float64 Gram matrix of the smaller side: several times faster than an SVD, and
        exact to about 1e-8 of the largest.
        """
        wide = self.weight.double()
        gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
        return torch.flip(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt(), (0,))


def matrices_of(
    structure: Structure, config: Mapping[str, Any], suffix: str, weight: torch.Tensor
) -> Iterator[tuple[str, StoredMatrix]]:
    """Yield the matrices of one stored tensor of a layer with their names: the tensor's, and what part of it.

    Raises:
        ArchitectureError: a fused weight does not divide as the config says.
    """
    if weight.dim() > 2:
        for expert, one in enumerate(weight.flatten(0, -3)):
            yield f"{suffix}[{expert}]", StoredMatrix(one)
        return
    role = structure.role(suffix)
    parts = structure.family.fused.get(role)
    if parts is None:
        yield suffix, StoredMatrix(weight)
        return
    transposed = role in structure.family.transposed
    rows = weight.T if transposed else weight
    for part, piece in zip(parts, _split(rows, parts, structure, config, suffix), strict=True):
        yield f"{suffix}[{part}]", StoredMatrix(piece.T if transposed else piece)


def _split(
    rows: torch.Tensor, parts: tuple[str, ...], structure: Structure, config: Mapping[str, Any], suffix: str
) -> list[torch.Tensor]:
    if len(parts) == 2:
        return list(rows.chunk(2))
    heads = _first(config, "num_attention_heads", "n_head")
    groups = _first(config, "num_key_value_heads") or heads
    if not heads or not groups or rows.shape[0] % (heads + 2 * groups):
        raise ArchitectureError(
            f"has {rows.shape[0]} rows, which {heads} query and {groups} key-value heads do not divide",
            where=suffix,
            hint="scores of this matrix's parts cannot be told apart",
        )
    head = rows.shape[0] // (heads + 2 * groups)
    if structure.family.fused_by_head:
        by_head = rows.reshape(heads, 3, head, -1)
        return [by_head[:, part].reshape(heads * head, -1) for part in range(3)]
    return list(torch.split(rows, [heads * head, groups * head, groups * head]))


def _first(config: Mapping[str, Any], *keys: str) -> int:
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)
