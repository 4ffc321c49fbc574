"""The `score` job: measures what was asked on the model after the recipe's steps, each kind of pass once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from surgeon.backend.bench import Bench, Settings, bench, calibration_of, provenance_of
from surgeon.backend.live_scores import activations_pass, gradients_pass, inputs_pass, sweep_pass
from surgeon.backend.score_cache import ScoreCache
from surgeon.backend.weighing import weights_pass
from surgeon.core.draft import Draft
from surgeon.core.fold import unfrozen
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.score import Provenance, Score, ScoreKind, WeightsScore, score_kinds
from surgeon.errors import ScoreError, UsageError

LivePass = Callable[[Bench, Sequence[Any], Provenance], dict[str, Score]]
_LIVE: dict[str, LivePass] = {
    "activations": activations_pass,
    "inputs": inputs_pass,
    "sweep": sweep_pass,
    "gradients": gradients_pass,
}


def measure(
    draft: Draft, names: Sequence[str], settings: Settings, emit: Emit, cancelled: IsCancelled
) -> tuple[Score, ...]:
    """Measure scores on a draft; each layer's value is emitted as `scored` the moment it is known.

    What has been measured before on the same weights, with the same text and settings, is taken from the cache. `all`
    stands for every score.

    Raises:
        UsageError: there is no such score. DataError, ScoreError, ArchitectureError: as its pass does.
    """
    draft = unfrozen(draft)
    asked = _kinds(names)
    cache = ScoreCache(draft.structure.checkpoint)
    calibration = calibration_of(draft, settings) if any(kind.data for kind in asked) else None
    origins = {
        kind.name: _origin(kind, provenance_of(draft, settings, calibration if kind.data else None)) for kind in asked
    }
    found = {kind.name: score for kind in asked if (score := cache.get(kind.name, origins[kind.name])) is not None}
    for score in found.values():
        _tell_again(score, emit)
    missing = [kind for kind in asked if kind.name not in found]
    fresh: dict[str, Score] = {}
    weights = [kind for kind in missing if isinstance(kind, WeightsScore)]
    if weights:
        fresh |= weights_pass(draft, weights, provenance_of(draft, settings), emit, cancelled)
    live = [kind for kind in missing if kind.needs in _LIVE]
    if live and calibration is not None:
        fresh |= _measure_live(draft, live, settings, calibration, emit, cancelled)
    for name, score in fresh.items():
        _require_finite(score)
        found[name] = msgspec.structs.replace(score, provenance=origins[name])
        cache.put(found[name])
        for note in score.notes:
            emit("log", {"level": "warning", "text": f"{name}: {note}"})
    return tuple(found[kind.name] for kind in asked)


def _kinds(names: Sequence[str]) -> list[ScoreKind]:
    kinds = score_kinds()
    wanted = list(kinds) if "all" in names else list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in kinds]
    if unknown:
        raise UsageError(
            f"no score {unknown[0]!r}", where="--by", allowed=", ".join((*kinds, "all")),
            hint="`surgeon list scores` explains them",
        )  # fmt: skip
    return [kinds[name]() for name in wanted]


def _origin(kind: ScoreKind, provenance: Provenance) -> Provenance:
    return msgspec.structs.replace(provenance, settings=msgspec.to_builtins(kind))


def _measure_live(
    draft: Draft, kinds: Sequence[ScoreKind], settings: Settings, calibration: Any, emit: Emit, cancelled: IsCancelled
) -> dict[str, Score]:
    """Run each pass; where memory runs out, run it again with batches half as large."""
    fresh: dict[str, Score] = {}
    batch_tokens = settings.batch_tokens
    for name, live_pass in _LIVE.items():
        wanted = [kind for kind in kinds if kind.needs == name]
        while wanted:
            try:
                with bench(draft, settings, calibration, batch_tokens, emit, cancelled) as ready:
                    fresh |= live_pass(ready, wanted, provenance_of(draft, settings, calibration))
                break
            except (torch.OutOfMemoryError, MemoryError):
                if batch_tokens <= settings.length:
                    raise
                batch_tokens //= 2
                emit("log", {"level": "warning", "text": f"out of memory: trying batches of {batch_tokens} tokens"})
    return fresh


def _tell_again(score: Score, emit: Emit) -> None:
    for key, value in score.values.items():
        row = score.matrices.get(key)
        emit(
            "scored",
            {"score": score.name, "layer": key, "value": value, "error": score.errors.get(key), "matrices": row},
        )


def _require_finite(score: Score) -> None:
    for key, value in score.values.items():
        if not math.isfinite(value):  # nor could inf cross the pipe: JSON has no word for it
            raise ScoreError(
                f"{score.name} is {value}", where=f"layer {key}",
                hint="its weights or hidden states hold inf or nan: check the model",
            )  # fmt: skip


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
