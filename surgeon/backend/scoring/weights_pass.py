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
from surgeon.backend.scoring.score_cache import ScoreCache, made_of_layer
from surgeon.backend.trained_adapters import LowRankUpdate, trained_updates
from surgeon.core.events import LayerScored
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, Layer
from surgeon.core.plan.layer_layouts import config_of, layout_of
from surgeon.core.plan.learned_results import layer_tensor
from surgeon.core.plan.plan import Adapter, PlannedTensor, compile_plan
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
    require_readable(draft.structure, [layout_of(draft.structure, stack, layer.source) for layer in layers])
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
    return ("layer", kind.name, kind, *made_of_layer(layer))


class _Scales:
    """Reads a layer's matrices one after the other, and lets every score that wants to look at each."""

    def __init__(self, draft: Draft, reader: TensorReader, job: JobContext) -> None:
        self._draft, self._reader, self._job = draft, reader, job
        self._stack = draft.structure.stack()

    @cached_property
    def _updates(self) -> Mapping[str, tuple[Adapter, LowRankUpdate]]:
        return trained_updates(self._draft)

    @cached_property
    def _planned(self) -> Mapping[str, PlannedTensor]:
        return {tensor.name: tensor for tensor in compile_plan(self._draft).tensors}

    def weigh(self, position: int, layer: Layer, kinds: Sequence[WeightsScore]) -> dict[str, MatrixScores]:
        found = {kind.name: MatrixScores({}, {}) for kind in kinds}
        config = config_of(self._draft.structure, self._stack, layer.source)
        for suffix, stored in self._weights(position, layer):
            self._job.stop_if_cancelled()
            own = layer_tensor(self._stack.name, layer.key, suffix.removesuffix(".weight"))
            adapted = own in self._updates
            weight = stored.float() + self._updates[own][1].weight if adapted else stored
            for name, matrix in matrices_of(self._draft.structure, config, suffix, weight):
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
        layout = layout_of(self._draft.structure, self._stack, layer.source)
        types = layout.types
        packed = {weight.stored: weight for weight in self._draft.structure.packed_weights(layout).values()}
        beside = companions_among(types) if packed else frozenset()
        quantisation = self._draft.structure.quantisation

        def read(suffix: str) -> torch.Tensor:
            tensor = self._planned[self._stack.tensor_name(position, suffix)]
            return self._reader.evaluate(tensor.source, tensor.dtype, tensor.shape)

        for suffix, tensor in types.items():
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
