"""Stored weights as the matrices a person means: fused projections apart, experts one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from surgeon.core.plan.draft import Truncation
from surgeon.core.structure.fused_projections import Piece, pieces_of
from surgeon.core.structure.structure import Structure


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
    def _wide(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        wide: np.ndarray[Any, np.dtype[np.float64]] = self.weight.double().numpy(force=True)
        return wide

    @cached_property
    def squared_norm(self) -> float:
        """The sum of all squared entries, in float64; not finite if any entry is not."""
        flat = self._wide.ravel(order="K")
        return float(flat @ flat)

    @cached_property
    def singular_values(self) -> torch.Tensor:
        """All singular values in float64, largest first.

        From the eigenvalues of the float64 Gram matrix of the smaller side: several times faster than an SVD, and
        exact to about 1e-8 of the largest.
        """
        # numpy multiplies a matrix by its own transpose in half the work, and its eigvalsh is the faster one too.
        wide = self._wide
        gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
        squares = np.linalg.eigvalsh(gram)[::-1].clip(min=0)
        return torch.from_numpy(np.sqrt(squares))


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
    pieces = pieces_of(structure, config, suffix, tuple(weight.shape))
    for piece in pieces:
        name = f"{suffix}[{piece.role}]" if len(pieces) > 1 else suffix
        yield name, StoredMatrix(cut(weight, piece))


def cut(weight: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Return one matrix of a stored weight; a view where it is one run."""
    runs = [weight.narrow(piece.axis, start, stop - start) for start, stop in piece.runs]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=piece.axis)


def put_back(weight: torch.Tensor, piece: Piece, matrix: torch.Tensor) -> None:
    """Write a matrix over the part of a stored weight that it was cut from."""
    at = 0
    for start, stop in piece.runs:
        weight.narrow(piece.axis, start, stop - start).copy_(matrix.narrow(piece.axis, at, stop - start))
        at += stop - start


def zero_directions(weight: torch.Tensor, gone: slice | torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the matrix without some of its singular directions, and the share of energy that went with them.

    Computed in float64 and rounded once to the matrix's dtype. `gone` indexes singular values, largest first.
    """
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    kept = values.clone()
    kept[gone] = 0
    energy = values.square().sum()
    lost = float(1 - kept.square().sum() / energy) if energy > 0 else 0.0
    return ((left * kept) @ right).to(weight.dtype), lost


def truncate(weight: torch.Tensor, pieces: Sequence[Piece], how: Truncation) -> None:
    """Zero singular directions of some matrices of a weight, in place; of every expert where they are stacked."""
    for one in weight.flatten(0, -3) if weight.dim() > 2 else (weight,):
        for piece in pieces:
            matrix = cut(one, piece)
            rank = min(matrix.shape)
            gone = torch.zeros(rank, dtype=torch.bool)
            for number in how.deciles:
                gone[decile(rank, number)] = True
            if how.rank is not None:
                gone[how.rank :] = True
            put_back(one, piece, zero_directions(matrix, gone)[0])


def decile(rank: int, number: int) -> slice:
    """Return which singular values are in a decile; 1 holds the largest tenth, 10 the smallest."""
    return slice(round(rank * (number - 1) / 10), round(rank * number / 10))
