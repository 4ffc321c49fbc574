"""The weights pass: each matrix once, streamed from disk, for all scores that asked.

A layer's rows are kept by where the layer's weights come from. So after an operation only layers that it made are
read: none after a prune, the inserted ones after an expand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import torch

from surgeon.backend.model.matrices import StoredMatrix, matrices_of
from surgeon.backend.model.tensors import TensorReader, is_matrix, tensor_reader
from surgeon.backend.scoring.dequantising import dequantised, require_readable
from surgeon.backend.scoring.score_cache import ScoreCache
from surgeon.core.events import LayerScored
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, Layer, base_tensors
from surgeon.core.plan.plan import PlannedTensor, compile_plan
from surgeon.core.scoring.score import Provenance, Score
from surgeon.core.scoring.score_kinds import WeightsScore
from surgeon.core.structure.companions import companions_among
from surgeon.errors import ScoreError


class MatrixScores(msgspec.Struct):
    """One layer by one kind of score: by matrix name a score, or a summary where the kind compares all matrices."""

    matrices: dict[str, Any]
    details: dict[str, dict[str, float]]


Rows = dict[str, MatrixScores]
"""By layer key."""


def weights_pass(
    draft: Draft, kinds: Sequence[WeightsScore], provenance: Provenance, cache: ScoreCache, job: JobContext,
) -> dict[str, Score]:  # fmt: skip
    """Measure scores made of matrices; a layer's value is told as soon as its matrices are read."""
    layers = draft.layers()
    stack = draft.structure.stack()
    require_readable(draft.structure, [base_tensors(layer.source, stack).layout for layer in layers])
    rows: dict[str, Rows] = {kind.name: {} for kind in kinds}
    with tensor_reader() as reader:
        scales = _Scales(draft, reader, job)
        for position, layer in enumerate(layers):
            job.progress(position, len(layers), "layers", "weights")
            known = {kind.name: cache.get(MatrixScores, *_made_of(kind, layer)) for kind in kinds}
            missing = [kind for kind in kinds if known[kind.name] is None]
            fresh = scales.weigh(position, layer, missing) if missing else {}
            for kind in kinds:
                row = rows[kind.name][layer.key] = known[kind.name] or fresh[kind.name]
                if not kind.compares:
                    _tell(kind, layer.key, row.matrices, job)
            if missing:
                cache.check()
            for kind in missing:
                cache.put(fresh[kind.name], *_made_of(kind, layer))
    job.progress(len(layers), len(layers), "layers", "weights")
    return {kind.name: _score(kind, rows[kind.name], provenance, job) for kind in kinds}


def _made_of(kind: WeightsScore, layer: Layer) -> tuple[Any, ...]:
    return ("layer", kind.name, kind, layer.source)


class _Scales:
    """Reads a layer's matrices one after the other, and lets every score that wants to look at each."""

    def __init__(self, draft: Draft, reader: TensorReader, job: JobContext) -> None:
        self._draft, self._reader, self._job = draft, reader, job
        self._stack = draft.structure.stack()
        self._config = draft.structure.stack_config(self._stack)

    @cached_property
    def _planned(self) -> Mapping[str, PlannedTensor]:
        return {tensor.name: tensor for tensor in compile_plan(self._draft).tensors}

    def weigh(self, position: int, layer: Layer, kinds: Sequence[WeightsScore]) -> dict[str, MatrixScores]:
        found = {kind.name: MatrixScores({}, {}) for kind in kinds}
        for suffix, weight in self._weights(position, layer):
            self._job.stop_if_cancelled()
            for name, matrix in matrices_of(self._draft.structure, self._config, suffix, weight):
                if not math.isfinite(matrix.squared_norm):
                    raise ScoreError(
                        f"{self._stack.tensor_name(position, suffix)} holds inf or nan", where=f"layer {layer.key}",
                        hint="such weights cannot be scored: check the model",
                    )  # fmt: skip
                for kind in kinds:
                    _look(kind, name, matrix, found[kind.name])
        return found

    def _weights(self, position: int, layer: Layer) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the weights of a layer that are matrices, by name; quantised ones as what they stand for."""
        stored = base_tensors(layer.source, self._stack)
        types = stored.layout.types
        packed = {weight.stored: weight for weight in self._draft.structure.packed_weights(stored.layout).values()}
        beside = companions_among(types) if packed else frozenset()
        quantisation = self._draft.structure.quantisation

        def read(suffix: str) -> torch.Tensor:
            tensor = self._planned[self._stack.tensor_name(position, suffix)]
            return self._reader.evaluate(tensor.source, tensor.dtype, tensor.shape)

        for suffix, tensor in stored.items():
            if suffix in packed and quantisation is not None:
                weight = dequantised(packed[suffix], types, quantisation, read)
                if weight.dim() > 1:
                    yield packed[suffix].name, weight
            elif is_matrix(tensor) and suffix not in beside:
                yield suffix, read(suffix)


def _look(kind: WeightsScore, name: str, matrix: StoredMatrix, row: MatrixScores) -> None:
    row.matrices[name] = kind.matrix(matrix)
    more = kind.details(matrix)
    if more:
        row.details[name] = dict(more)


def _score(kind: WeightsScore, rows: Rows, provenance: Provenance, job: JobContext) -> Score:
    matrices = {key: row.matrices for key, row in rows.items()}
    if kind.compares:
        spots = [(key, name) for key, row in matrices.items() for name in row]
        values = kind.finalize([matrices[key][name] for key, name in spots])
        matrices = {key: {} for key in rows}
        for (key, name), value in zip(spots, values, strict=True):
            matrices[key][name] = value
        for key, row in matrices.items():
            _tell(kind, key, row, job)
    return Score(
        name=kind.name, values={key: kind.layer(row) for key, row in matrices.items()}, matrices=matrices,
        details={key: row.details for key, row in rows.items() if row.details}, provenance=provenance,
    )  # fmt: skip


def _tell(kind: WeightsScore, key: str, row: dict[str, Any], job: JobContext) -> None:
    job.emit(LayerScored(score=kind.name, layer=key, value=kind.layer(row), matrices=row))
