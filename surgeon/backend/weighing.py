"""The weights pass: each matrix once, streamed from disk, for all scores that asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.backend.matrices import StoredMatrix, matrices_of
from surgeon.backend.tensors import TensorReader, is_matrix, tensor_reader
from surgeon.core.draft import Draft, Layer, base_tensors
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan import PlannedTensor, compile_plan
from surgeon.core.score import Provenance, Score, WeightsScore
from surgeon.core.structure import Stack
from surgeon.errors import Cancelled

Rows = dict[str, dict[str, Any]]
"""By layer key, then by matrix name: a score, or a summary where a score compares all matrices."""


def weights_pass(
    draft: Draft, kinds: Sequence[WeightsScore], provenance: Provenance, emit: Emit, cancelled: IsCancelled
) -> dict[str, Score]:
    """Measure scores made of matrices; a layer's value is told as soon as its matrices are read."""
    stack = draft.structure.stack()
    planned = {tensor.name: tensor for tensor in compile_plan(draft).tensors}
    layers = draft.layers()
    rows: dict[str, Rows] = {kind.name: {} for kind in kinds}
    details: dict[str, dict[str, Any]] = {kind.name: {} for kind in kinds}
    with tensor_reader() as reader:
        for position, layer in enumerate(layers):
            emit("progress", {"done": position, "total": len(layers), "unit": "layers", "what": "weights"})
            _weigh(draft, stack, position, layer, kinds, reader, planned, rows, details, cancelled)
            for kind in kinds:
                if not kind.compares:
                    _tell(kind, layer.key, rows[kind.name][layer.key], emit)
    emit("progress", {"done": len(layers), "total": len(layers), "unit": "layers", "what": "weights"})
    return {kind.name: _score(kind, rows[kind.name], details[kind.name], provenance, emit) for kind in kinds}


def _weigh(
    draft: Draft, stack: Stack, position: int, layer: Layer, kinds: Sequence[WeightsScore], reader: TensorReader,
    planned: Mapping[str, PlannedTensor], rows: dict[str, Rows], details: dict[str, dict[str, Any]],
    cancelled: IsCancelled,
) -> None:  # fmt: skip
    config = draft.structure.stack_config(stack)
    for kind in kinds:
        rows[kind.name][layer.key] = {}
        details[kind.name][layer.key] = {}
    for suffix, stored in base_tensors(layer.source, stack).items():
        if cancelled():
            raise Cancelled
        if not is_matrix(stored):
            continue
        tensor = planned[stack.tensor_name(position, suffix)]
        weight = reader.evaluate(tensor.source, tensor.dtype, tensor.shape)
        for name, matrix in matrices_of(draft.structure, config, suffix, weight):
            _apply(kinds, layer.key, name, matrix, rows, details)


def _apply(
    kinds: Sequence[WeightsScore],
    key: str,
    name: str,
    matrix: StoredMatrix,
    rows: dict[str, Rows],
    details: dict[str, dict[str, Any]],
) -> None:
    for kind in kinds:
        rows[kind.name][key][name] = kind.matrix(matrix)
        more = kind.details(matrix)
        if more:
            details[kind.name][key][name] = dict(more)


def _score(kind: WeightsScore, rows: Rows, details: dict[str, Any], provenance: Provenance, emit: Emit) -> Score:
    if kind.compares:
        spots = [(key, name) for key, row in rows.items() for name in row]
        for (key, name), value in zip(spots, kind.settle([rows[key][name] for key, name in spots]), strict=True):
            rows[key][name] = value
        for key, row in rows.items():
            _tell(kind, key, row, emit)
    return Score(
        name=kind.name, values={key: kind.layer(row) for key, row in rows.items()}, matrices=rows,
        details={key: row for key, row in details.items() if row}, provenance=provenance,
    )  # fmt: skip


def _tell(kind: WeightsScore, key: str, row: dict[str, Any], emit: Emit) -> None:
    emit("scored", {"score": kind.name, "layer": key, "value": kind.layer(row), "error": None, "matrices": row})
