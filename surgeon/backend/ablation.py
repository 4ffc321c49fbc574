"""The `ablate` job: the loss without each decile of the singular values of all matrices of a role.

Source: Small Singular Values Matter, arXiv:2410.17770, section 5. The share of energy removed is reported beside
each loss: a decile may cost much because it holds much, or although it holds little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from surgeon.backend.bench import Bench, Settings, bench, calibration_of, provenance_of
from surgeon.backend.calling import losses_of
from surgeon.backend.matrices import cut, decile, put_back
from surgeon.backend.measuring import settings_of
from surgeon.core.draft import Draft, Original, Truncated, Truncation
from surgeon.core.fold import unfrozen
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.pieces import Piece
from surgeon.core.plan import truncated_pieces
from surgeon.core.score import Average, Provenance, average, paired_average
from surgeon.errors import Cancelled, SelectionError

DECILES = 10


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """One decile of one role, zeroed in all layers: `rise` in nats per token, `energy` as share of the squared norm."""

    role: str
    decile: int
    rise: float
    error: float | None
    energy: float


class Ablations(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement; `base` is the loss of the untouched model in nats per token."""

    base: float
    rows: list[Ablation]
    provenance: Provenance


@dataclass
class _Matrix:
    """One matrix in place: the stored weight it is part of, and its singular value decomposition."""

    weight: torch.Tensor
    piece: Piece
    whole: torch.Tensor
    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def without(self, number: int) -> float:
        """Zero one decile in place and return the energy that went, in squared norm."""
        gone = decile(len(self.values), number)
        lost = (self.left[:, gone] * self.values[gone]) @ self.right[gone]
        put_back(self.weight, self.piece, (self.whole.double() - lost).to(self.weight.dtype))
        return float(self.values[gone].square().sum())

    def restore(self) -> None:
        put_back(self.weight, self.piece, self.whole)


def ablate(draft: Draft, roles: Sequence[str], settings: Settings, emit: Emit, cancelled: IsCancelled) -> Ablations:
    """Measure all deciles of all asked roles; every row is emitted as `scored` when it is known.

    Raises:
        SelectionError: the model has no such role.
    """
    draft = unfrozen(draft)
    calibration = calibration_of(draft, settings)
    rows: list[Ablation] = []
    with bench(draft, settings, calibration, settings.batch_tokens, emit, cancelled) as ready, torch.inference_mode():
        base = _losses(ready)
        for number, role in enumerate(roles):
            matrices = list(_matrices(ready, role))
            if not matrices:
                raise SelectionError(
                    f"no matrix in a layer has role {role!r}", where="roles", allowed=", ".join(draft.structure.roles)
                )
            for found in _deciles(ready, role, matrices, base):
                rows.append(found)
                emit("scored", {"ablation": msgspec.to_builtins(found)})
                ready.progress(number * DECILES + found.decile, len(roles) * DECILES, "ablating", "deciles")
    return Ablations(base=average(base).value, rows=rows, provenance=provenance_of(draft, settings, calibration))


def _matrices(ready: Bench, role: str) -> Iterator[_Matrix]:
    structure = ready.draft.structure
    stack = structure.stack()
    meant = Truncated(Original(0), frozenset({role}), Truncation())
    for layer in ready.runner.layers:
        for name, parameter in layer.named_parameters():
            weights = parameter.data.flatten(0, -3) if parameter.dim() > 2 else (parameter.data,)
            for piece in truncated_pieces(structure, stack, meant, name, tuple(parameter.shape)):
                for weight in weights:
                    whole = cut(weight, piece).clone()
                    yield _Matrix(weight, piece, whole, *torch.linalg.svd(whole.double(), full_matrices=False))


def _deciles(ready: Bench, role: str, matrices: Sequence[_Matrix], base: Sequence[float]) -> Iterator[Ablation]:
    energy = sum(float(matrix.values.square().sum()) for matrix in matrices) or 1.0
    for number in range(1, DECILES + 1):
        try:
            gone = sum(matrix.without(number) for matrix in matrices)
            rise: Average = paired_average(_losses(ready), base)
        finally:
            for matrix in matrices:
                matrix.restore()
        yield Ablation(role=role, decile=number, rise=rise.value, error=rise.error, energy=gone / energy)


def _losses(ready: Bench) -> list[float]:
    losses: list[float] = []
    for tokens_BT in ready.batches:
        if ready.cancelled():
            raise Cancelled
        losses += losses_of(ready.model(input_ids=tokens_BT, use_cache=False).logits, tokens_BT).tolist()
    return losses


def ablate_job(
    args: Mapping[str, Any], read_draft: Callable[[Mapping[str, Any]], Draft], emit: Emit, cancelled: IsCancelled
) -> dict[str, Any]:
    """Perform an `ablate` job: the arguments of a `score` job, with `roles` in place of `names`."""
    found = ablate(read_draft(args), args["roles"], settings_of(args), emit, cancelled)
    return {"ablations": msgspec.to_builtins(found)}
