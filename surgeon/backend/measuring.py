"""The `score` job: measures what was asked on the model after the recipe's steps, each kind of pass once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from surgeon.backend.calibration import read_calibration
from surgeon.backend.device import choose_device, choose_dtype
from surgeon.backend.live import layer_list, operated
from surgeon.backend.loading import load_tokenizer, resident_model
from surgeon.backend.passes import push_layers
from surgeon.backend.tensors import is_matrix, tensor_reader
from surgeon.core.draft import Draft, base_tensors
from surgeon.core.fold import unfrozen
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan import compile_plan
from surgeon.core.score import ActivationsScore, Provenance, Score, WeightsScore, score_kinds
from surgeon.errors import Cancelled, ScoreError, UsageError

_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Settings:
    """How to measure: sequences x length tokens of `data` (None: the built-in text), relative to `root`."""

    root: Path
    data: str | None = None
    sequences: int = 12
    length: int = 256
    seed: int = 0
    device: str | None = None
    dtype: str | None = None


def measure(
    draft: Draft, names: Sequence[str], settings: Settings, emit: Emit, cancelled: IsCancelled
) -> tuple[Score, ...]:
    """Measure scores on a draft; each layer's value is emitted as `scored` the moment it is known.

    Raises:
        UsageError: there is no such score. DataError, ScoreError, ArchitectureError: as its pass does.
    """
    kinds = score_kinds()
    unknown = [name for name in names if name not in kinds]
    if unknown:
        raise UsageError(
            f"no score {unknown[0]!r}",
            where="--by",
            allowed=", ".join(kinds),
            hint="`surgeon list scores` explains them",
        )
    draft = unfrozen(draft)
    asked = [kinds[name]() for name in dict.fromkeys(names)]
    weights = [kind for kind in asked if isinstance(kind, WeightsScore)]
    activations = [kind for kind in asked if isinstance(kind, ActivationsScore)]
    found: dict[str, Score] = {}
    if weights:
        found |= _weights_pass(draft, weights, emit, cancelled)
    if activations:
        found |= _activations_pass(draft, activations, settings, emit, cancelled)
    return tuple(found[kind.name] for kind in asked)


def _weights_pass(draft: Draft, kinds: Sequence[WeightsScore], emit: Emit, cancelled: IsCancelled) -> dict[str, Score]:
    stack = draft.structure.stack()
    planned = {tensor.name: tensor for tensor in compile_plan(draft).tensors}
    layers = draft.layers()
    matrices: dict[str, dict[str, dict[str, float]]] = {kind.name: {} for kind in kinds}
    values: dict[str, dict[str, float]] = {kind.name: {} for kind in kinds}
    with tensor_reader() as reader:
        for position, layer in enumerate(layers):
            emit("progress", {"done": position, "total": len(layers), "unit": "layers", "what": "weights"})
            rows: dict[str, dict[str, float]] = {kind.name: {} for kind in kinds}
            for suffix, stored in base_tensors(layer.source, stack).items():
                if cancelled():
                    raise Cancelled
                if is_matrix(stored):
                    tensor = planned[stack.tensor_name(position, suffix)]
                    weight = reader.evaluate(tensor.source, tensor.dtype, tensor.shape)
                    for kind in kinds:
                        rows[kind.name][suffix] = kind.matrix(weight)
            for kind in kinds:
                matrices[kind.name][layer.key] = rows[kind.name]
                values[kind.name][layer.key] = value = _finite(kind.layer(rows[kind.name]), kind.name, layer.key)
                emit(
                    "scored",
                    {
                        "score": kind.name,
                        "layer": layer.key,
                        "value": value,
                        "error": None,
                        "matrices": rows[kind.name],
                    },
                )
    provenance = Provenance(fingerprint=draft.structure.checkpoint.fingerprint, draft=draft.digest)
    return {
        kind.name: Score(name=kind.name, values=values[kind.name], matrices=matrices[kind.name], provenance=provenance)
        for kind in kinds
    }


def _activations_pass(
    draft: Draft, kinds: Sequence[ActivationsScore], settings: Settings, emit: Emit, cancelled: IsCancelled
) -> dict[str, Score]:
    checkpoint = draft.structure.checkpoint
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    calibration = read_calibration(
        settings.data, settings.root, load_tokenizer(checkpoint.path),
        sequences=settings.sequences, length=settings.length, seed=settings.seed,
    )  # fmt: skip
    emit("log", {"level": "info", "text": f"loading {checkpoint.path.name} on {device}"})
    model = resident_model(checkpoint, dtype, device).model
    batches = torch.split(calibration.tokens_BT.to(device), max(1, _BATCH_TOKENS // settings.length))
    keys = [layer.key for layer in draft.layers()]
    with operated(model, draft) as edited:
        results = _average(edited, layer_list_of(edited, draft), batches, kinds, keys, emit, cancelled)
    provenance = Provenance(
        fingerprint=checkpoint.fingerprint, draft=draft.digest, data=calibration.digest, sequences=settings.sequences,
        length=settings.length, seed=settings.seed, dtype=str(dtype or "auto").removeprefix("torch."),
    )  # fmt: skip
    return {
        name: Score(name=name, values=values, errors=errors, provenance=provenance)
        for name, (values, errors) in results.items()
    }


def layer_list_of(model: torch.nn.Module, draft: Draft) -> torch.nn.ModuleList:
    """Return the live list of a draft's layers, whose length is the draft's."""
    stack = draft.structure.stack()
    return layer_list(model, stack, count=len(draft.layers()))


Results = dict[str, tuple[dict[str, float], dict[str, float]]]


def _average(
    model: torch.nn.Module,
    layers: torch.nn.ModuleList,
    batches: Sequence[torch.Tensor],
    kinds: Sequence[ActivationsScore],
    keys: Sequence[str],
    emit: Emit,
    cancelled: IsCancelled,
) -> Results:
    results: Results = {kind.name: ({}, {}) for kind in kinds}
    seen: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for one in push_layers(model, layers, batches, cancelled):
        for kind in kinds:
            seen[kind.name] += kind.sequences(one.hidden_in_BTD, one.hidden_out_BTD).tolist()
        if one.batch < len(batches) - 1:
            continue
        emit("progress", {"done": one.layer + 1, "total": len(keys), "unit": "layers", "what": "activations"})
        for kind in kinds:
            value, error = mean_and_error(seen[kind.name])
            _finite(value, kind.name, keys[one.layer])
            results[kind.name][0][keys[one.layer]] = value
            if error is not None:
                results[kind.name][1][keys[one.layer]] = error
            emit(
                "scored",
                {"score": kind.name, "layer": keys[one.layer], "value": value, "error": error, "matrices": None},
            )
            seen[kind.name] = []
    return results


def _finite(value: float, score: str, key: str) -> float:
    if not math.isfinite(value):
        raise ScoreError(
            f"{score} is {value}",
            where=f"layer {key}",
            hint="its weights or hidden states hold inf or nan: check the model",
        )
    return value


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over sequences and its standard error; None where one sequence cannot tell."""
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def score_job(
    args: Mapping[str, Any], read_draft: Callable[[Mapping[str, Any]], Draft], emit: Emit, cancelled: IsCancelled
) -> dict[str, Any]:
    """Perform a `score` job; see `Session.score_job` for its arguments."""
    settings = settings_of(args)
    scores = measure(read_draft(args), args["names"], settings, emit, cancelled)
    return {"scores": [msgspec.to_builtins(score) for score in scores]}


def settings_of(args: Mapping[str, Any]) -> Settings:
    """Pick the measuring settings out of a job's arguments."""
    known = {field for field in Settings.__dataclass_fields__ if field != "root"}
    given = {name: value for name, value in args.items() if name in known and value is not None}
    return Settings(root=Path(args.get("root", ".")), **given)
