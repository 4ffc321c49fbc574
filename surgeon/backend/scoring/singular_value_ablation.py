"""The `ablate` job: the loss without each decile of the singular values of all matrices of a role.

Source: Small Singular Values Matter, arXiv:2410.17770, section 5. The share of energy removed is reported beside
each loss, so that a decile that costs much because it holds much can be told from one that holds little.

Layer-major: the whole model and its ten variants go through a layer together, so that each matrix is decomposed once
and no more than one layer is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import nn

from surgeon.backend.model.matrices import cut, decile, put_back
from surgeon.backend.model.quantised_models import require_values
from surgeon.backend.model.streaming import weights_in_order
from surgeon.backend.scoring.context import (
    WEIGHTS_ONLY,
    ScoringContext,
    Settings,
    calibration_of,
    draft_to_measure,
    provenance_of,
    scoring_context,
)
from surgeon.backend.scoring.hidden_states import HiddenStates
from surgeon.backend.scoring.layer_sequence_losses import losses_after
from surgeon.core.events import DecileAblated
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, Truncated, Truncation
from surgeon.core.plan.expressions import truncated_pieces
from surgeon.core.scoring.score import Provenance, average, paired_average
from surgeon.core.structure.fused_projections import Piece
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
    """The whole measurement; `base` is the loss of the untouched model in nats per token.

    weights_only: whether the model carries trained adapters that were left out.
    """

    base: float
    rows: list[Ablation]
    weights_only: bool = False
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


def ablate(draft: Draft, roles: Sequence[str], settings: Settings, job: JobContext) -> Ablations:
    """Measure all deciles of all asked roles; every row is emitted as `scored` when it is known.

    Raises:
        SelectionError: the model has no such role.
    """
    adapted, draft = draft, draft_to_measure(draft, settings)
    weights_only = adapted.trained_adapters and not draft.trained_adapters
    if weights_only:
        job.warn(WEIGHTS_ONLY)
    _require_roles(draft, roles)
    calibration = calibration_of(draft, settings, job)
    rows: list[Ablation] = []
    base: list[float] = []
    with (
        scoring_context(draft, settings, calibration, settings.first_batch, job) as context,
        torch.inference_mode(),
    ):
        require_values(draft.structure, context.runner.layers, "ablation")
        for role in dict.fromkeys(roles):
            with HiddenStates(context.room) as states:
                ablated = _Ablated(context, role, states)
                ablated.push()
                base = ablated.losses(0)
                for number in range(1, DECILES + 1):
                    rise = paired_average(ablated.losses(number), base)
                    row = Ablation(
                        role=role, decile=number, rise=rise.value, error=rise.error, energy=ablated.energy(number)
                    )
                    rows.append(row)
                    job.emit(DecileAblated(ablation=msgspec.to_builtins(row)))
    provenance = provenance_of(draft, settings, calibration)
    return Ablations(base=average(base).value, rows=rows, weights_only=weights_only, provenance=provenance)


def _require_roles(draft: Draft, roles: Sequence[str]) -> None:
    structure = draft.structure
    stored = set(structure.roles)
    known = stored | {part for role in stored for part in structure.family.fused.get(role, ())}
    for role in roles:
        if role not in known:
            raise SelectionError(
                f"no matrix in a layer has role {role!r}", where="roles", allowed=", ".join(sorted(known))
            )


class _Ablated:
    """The whole model, variant 0, and ten without a decile of one role, on their way through the layers."""

    def __init__(self, context: ScoringContext, role: str, states: HiddenStates) -> None:
        self._ready, self._role = context, role
        self._states = states
        context.runner.require_plain_end(context.batches[0])
        self._calls = [context.runner.record(tokens_BT) for tokens_BT in context.batches]
        for batch, one in enumerate(self._calls):
            hidden_BTD = one.release()
            for variant in range(DECILES + 1):
                states.put(variant, batch, hidden_BTD)
        self._energies = [0.0] * (DECILES + 1)

    def push(self) -> None:
        """Push all variants through all layers."""
        count = len(self._ready.runner.layers)
        found = False
        layers = list(self._ready.runner.layers)
        with weights_in_order(layers) as weights:
            for number, layer in enumerate(layers):
                with weights(number):
                    found |= self._push_through(number, layer)
                self._ready.progress(number + 1, count, f"ablating {self._role}")
        if not found:
            raise SelectionError(f"no matrix in a layer has role {self._role!r}", where="roles")

    def _push_through(self, number: int, layer: nn.Module) -> bool:
        source = self._ready.draft.layers()[number].source
        matrices = list(_matrices(self._ready, layer, Truncated(source, frozenset({self._role}), Truncation())))
        self._energies[0] += sum(float(matrix.values.square().sum()) for matrix in matrices)
        for variant in range(DECILES + 1):
            try:
                if variant:
                    self._energies[variant] += sum(matrix.without(variant) for matrix in matrices)
                self._run(number, layer, variant)
            finally:
                if variant:
                    for matrix in matrices:
                        matrix.restore()
        return bool(matrices)

    def _run(self, number: int, layer: nn.Module, variant: int) -> None:
        for batch, one in enumerate(self._calls):
            if self._ready.job.is_cancelled():
                raise Cancelled
            hidden_BTD = self._states.get(variant, batch)
            self._states.put(variant, batch, self._ready.runner.run(layer, hidden_BTD, one.calls[number]))

    def energy(self, number: int) -> float:
        """Return the share of the squared norm that is in a decile."""
        return self._energies[number] / (self._energies[0] or 1.0)

    def losses(self, variant: int) -> list[float]:
        """Return the losses of one variant, in nats per token, one per calibration sequence."""
        context = self._ready
        return losses_after(context.runner, context.batches, self._states, variant, context.job.is_cancelled)


def _matrices(context: ScoringContext, layer: nn.Module, meant: Truncated) -> Iterator[_Matrix]:
    structure = context.draft.structure
    for name, parameter in layer.named_parameters():
        if parameter.dim() < 2:
            continue
        update = context.updates.get(layer.get_submodule(name.rpartition(".")[0])) if name.endswith(".weight") else None
        weights = parameter.data.flatten(0, -3) if parameter.dim() > 2 else (parameter.data,)
        for piece in truncated_pieces(structure, structure.stack(), meant, name, tuple(parameter.shape)):
            for weight in weights:
                whole = cut(weight, piece).clone()
                # What the adapter adds stays with the live module: the weight below loses the whole's direction.
                seen = whole.double() if update is None else whole.double() + cut(update.weight, piece)
                yield _Matrix(weight, piece, whole, *torch.linalg.svd(seen, full_matrices=False))
