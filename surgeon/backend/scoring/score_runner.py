"""The `score` job: measures what was asked on the model after the recipe's steps, each kind of pass once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch

from surgeon.backend.data.calibration import Calibration
from surgeon.backend.model.fit import fit_of
from surgeon.backend.out_of_memory import is_out_of_memory
from surgeon.backend.scoring.context import (
    WEIGHTS_ONLY,
    Row,
    ScoringContext,
    Settings,
    calibration_of,
    draft_to_measure,
    provenance_of,
    scoring_context,
)
from surgeon.backend.scoring.model_scores import activations_pass, gradients_pass, inputs_pass
from surgeon.backend.scoring.part_pass import parts_pass
from surgeon.backend.scoring.score_cache import ScoreCache, made_of_layer
from surgeon.backend.scoring.sweep_pass import sweep_pass
from surgeon.backend.scoring.tally import warn_if_too_few_data
from surgeon.backend.scoring.weights_pass import weights_pass
from surgeon.core.events import LayerScored
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.scoring.requests import requested_scores
from surgeon.core.scoring.score import Average, Provenance, Score
from surgeon.core.scoring.score_kinds import AdapterScore, LearningScore, ScoreKind, WeightsScore
from surgeon.core.structure.uneven_layers import first_gap
from surgeon.errors import ArchitectureError, CheckpointError, ScoreError, SurgeonError

LivePass = Callable[[ScoringContext, Sequence[Any], Provenance], dict[str, Score]]
_LIVE: dict[str, LivePass] = {
    "activations": activations_pass,
    "inputs": inputs_pass,
    "parts": parts_pass,
    "gradients": gradients_pass,
    "sweep": sweep_pass,
}
"""The dearest last: its rows are the longest to wait for."""


def measure(draft: Draft, names: Sequence[str], settings: Settings, job: JobContext) -> tuple[Score, ...]:
    """Measure scores on a draft; each layer's value is emitted as `scored` the moment it is known.

    What has been measured before on the same weights, with the same text and settings, is taken from the cache. `all`
    stands for every score; those that this model cannot have are then left out with a warning.

    Raises:
        UsageError: there is no such score. DataError, ScoreError, ArchitectureError: as its pass does.
    """
    asked = requested_scores(names)
    lenient = "all" in names
    _require_whole(draft, job, loaded=not lenient and any(kind.needs != "weights" for kind in asked))
    measurement = _Measurement(draft, asked, settings, job, lenient=lenient)
    found = measurement.known()
    missing = [kind for kind in asked if kind.name not in found]
    for score in measurement.fresh(missing):
        found[score.name] = score
    found = {name: _labelled(score, measurement) for name, score in found.items()}
    for score in found.values():  # of the cache too: a doubt does not grow old
        for note in score.notes:
            job.warn(f"{score.name}: {note}")
    if missing:
        measurement.cache.trim()
    return tuple(_named(found[kind.name], kind, settings.data) for kind in asked if kind.name in found)


def _labelled(score: Score, measurement: _Measurement) -> Score:
    """Say of a score that trained adapters were left out."""
    kind = next(kind for kind in measurement.asked if kind.name == score.name)
    if kind.of_adapters or not (measurement.settings.weights_only and measurement.adapted.trained_adapters):
        return score
    return msgspec.structs.replace(score, notes=(*score.notes, WEIGHTS_ONLY), weights_only=True)


def _refuse_adapters_twice(draft: Draft, asked: Sequence[ScoreKind]) -> None:
    names = [kind.name for kind in asked if isinstance(kind, LearningScore) and not kind.of_adapters]
    if names and draft.trained_adapters:
        raise ScoreError(
            f"{names[0]} trains adapters of its own, and the model carries trained ones", where=names[0],
            hint="merge_adapters first, or ask for the weights alone: --weights-only",
        )  # fmt: skip


def _require_whole(draft: Draft, job: JobContext, *, loaded: bool) -> None:
    """Refuse a model that lacks weights: those that are there would be ranked as if it were whole.

    A model that transformers cannot judge is told by its names, where it need not be `loaded`.
    """
    checkpoint = draft.structure.checkpoint
    try:
        fit = fit_of(checkpoint)
    except SurgeonError as error:
        if loaded:
            raise
        gap = first_gap(draft.structure)
        if gap:
            raise CheckpointError(f"lacks {gap}", where=str(checkpoint.path), hint="fetch the weights again") from error
        job.warn(f"whether the model is whole was not judged: {error.what}")
        return
    fit.require(checkpoint)


def _named(score: Score, kind: ScoreKind, data: str | None) -> Score:
    return msgspec.structs.replace(score, measured_on=data) if kind.data else score


class _Measurement:
    """One job: what was asked, on which draft, and what is known of it already."""

    def __init__(
        self, draft: Draft, asked: Sequence[ScoreKind], settings: Settings, job: JobContext,
        *, lenient: bool,
    ) -> None:  # fmt: skip
        self.adapted = draft
        self.draft = draft_to_measure(draft, settings)
        _refuse_adapters_twice(self.draft, asked)
        self.settings, self.job, self.lenient = settings, job, lenient
        self.cache = ScoreCache(*draft.checkpoints)
        needs_text = any(kind.data and not isinstance(kind, LearningScore) for kind in asked)
        self.calibration: Calibration | None = calibration_of(draft, settings, job) if needs_text else None
        self.origins = {kind.name: self._origin(kind) for kind in asked}
        self.asked = asked

    def _origin(self, kind: ScoreKind) -> Provenance:
        if kind.of_adapters:
            provenance = provenance_of(self.adapted, self.settings)
            provenance = msgspec.structs.replace(provenance, draft=self.adapted.adapted_digest, seed=self.settings.seed)
        elif isinstance(kind, LearningScore):
            from surgeon.backend.scoring.learned_scores import learned_origin  # training takes longer to import

            provenance = learned_origin(self.draft, self.settings)
        else:
            provenance = provenance_of(self.draft, self.settings, self.calibration if kind.data else None)
        return msgspec.structs.replace(provenance, settings=msgspec.to_builtins(kind))

    def known(self) -> dict[str, Score]:
        """Return the scores that were measured before, and tell them again."""
        found = {}
        for kind in self.asked:
            score = self.cache.get(Score, *self._made_of(kind)) or self._from_rows(kind)
            if score is not None:
                found[kind.name] = score
                _emit_again(score, self.job)
        return found

    def _made_of(self, kind: ScoreKind) -> tuple[Any, ...]:
        # Two drafts of the same weights may call their layers differently.
        layers = [(layer.key, layer.settings) for layer in self.draft.layers()]
        return ("score", kind.name, self.origins[kind.name], layers)

    def _row_made_of(self, kind: ScoreKind, layer: int) -> tuple[Any, ...]:
        """Name a layer's row by everything up to the layer, and nothing behind it."""
        before = [(*made_of_layer(one), one.settings) for one in self.draft.layers()[: layer + 1]]
        return ("row", kind.name, msgspec.structs.replace(self.origins[kind.name], draft=""), before)

    def rows(self, kind: ScoreKind) -> dict[int, Row]:
        """Return the rows of a local score that no operation has made stale."""
        if not kind.local:
            return {}
        found = {}
        for layer in range(len(self.draft.layers())):
            row = self.cache.get(Row, *self._row_made_of(kind, layer))
            if row is None:
                break
            found[layer] = row
        return found

    def _from_rows(self, kind: ScoreKind) -> Score | None:
        rows = self.rows(kind)
        keys = [layer.key for layer in self.draft.layers()]
        if len(rows) < len(keys):
            return None
        return Score(
            name=kind.name, values={keys[layer]: row.value for layer, row in rows.items()},
            errors={keys[layer]: row.error for layer, row in rows.items() if row.error is not None},
            matrices={keys[layer]: row.matrices for layer, row in rows.items() if row.matrices},
            notes=tuple(warn_if_too_few_data({layer: Average(row.value, row.error) for layer, row in rows.items()})),
            provenance=self.origins[kind.name],
        )  # fmt: skip

    def fresh(self, kinds: Sequence[ScoreKind]) -> list[Score]:
        """Measure scores, each kind of pass once, and keep them."""
        weights = [kind for kind in kinds if isinstance(kind, WeightsScore)]
        found: dict[str, Score] = {}
        if weights:
            found |= self._of_weights(weights)
        for name, live_pass in _LIVE.items():
            wanted = [kind for kind in kinds if kind.needs == name]
            if wanted:
                found |= self._live(live_pass, wanted)
        of_adapters = [kind for kind in kinds if isinstance(kind, AdapterScore)]
        if of_adapters:
            from surgeon.backend.scoring.adapters_pass import adapters_pass

            found |= adapters_pass(self.adapted, of_adapters, self.settings, self.job)
        for kind in kinds:
            if isinstance(kind, LearningScore):
                from surgeon.backend.scoring.learned_scores import learned_score

                draft = self.adapted if kind.of_adapters else self.draft
                found[kind.name] = learned_score(draft, kind, self.settings, self.job)
        return [self._kept(kind, found[kind.name]) for kind in kinds if kind.name in found]

    def _kept(self, kind: ScoreKind, score: Score) -> Score:
        _require_finite(score)
        score = msgspec.structs.replace(score, provenance=self.origins[kind.name])
        self.cache.check()
        self.cache.put(score, *self._made_of(kind))
        if kind.local:
            for layer, (key, value) in enumerate(score.values.items()):
                row = Row(value, score.errors.get(key), score.matrices.get(key, {}))
                self.cache.put(row, *self._row_made_of(kind, layer))
        return score

    def _of_weights(self, kinds: Sequence[WeightsScore]) -> dict[str, Score]:
        """Read every matrix once; of `all`, such scores are left out where the weights cannot be read."""
        try:
            return weights_pass(self.draft, kinds, provenance_of(self.draft, self.settings), self.cache, self.job)
        except ArchitectureError as error:
            if not self.lenient:
                raise
            self.job.warn(f"{', '.join(kind.name for kind in kinds)} are left out: {error}")
            return {}

    def _live(self, live_pass: LivePass, kinds: Sequence[ScoreKind]) -> dict[str, Score]:
        """Run one pass for all kinds; where only some of `all` can be measured, for those of experts and the rest."""
        try:
            return self._with_enough_memory(live_pass, kinds)
        except (ArchitectureError, ScoreError) as error:
            if not self.lenient:
                raise
            if len(kinds) == 1:
                self.job.warn(f"{kinds[0].name} is left out: {error}")
                return {}
        experts = [kind for kind in kinds if getattr(kind, "part", None) == "experts"]
        others = [kind for kind in kinds if kind not in experts]
        groups = [experts, others] if experts and others else [[kind] for kind in kinds]
        return {name: score for group in groups for name, score in self._live(live_pass, group).items()}

    def _with_enough_memory(self, live_pass: LivePass, kinds: Sequence[ScoreKind]) -> dict[str, Score]:
        """Run one pass; where memory runs out, run it again with batches half as large."""
        assert self.calibration is not None
        batch_tokens = self.settings.first_batch
        rows = {kind.name: self.rows(kind) for kind in kinds}
        while True:
            try:
                with scoring_context(
                    self.draft, self.settings, self.calibration, batch_tokens, self.job, rows
                ) as context:
                    return live_pass(context, kinds, provenance_of(self.draft, self.settings, self.calibration))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or batch_tokens <= self.settings.length:
                    raise
            # Outside the handler: the traceback held the tensors that did not fit.
            batch_tokens //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            text = f"out of memory: trying batches of {batch_tokens} tokens"
            self.job.warn(text)


def _emit_again(score: Score, job: JobContext) -> None:
    for key, value in score.values.items():
        matrices = score.matrices.get(key)
        error = score.errors.get(key)
        job.emit(LayerScored(score=score.name, layer=key, value=value, error=error, matrices=matrices))


def _require_finite(score: Score) -> None:
    for key, value in score.values.items():
        if not math.isfinite(value):  # nor could inf cross the pipe: JSON has no word for it
            raise ScoreError(
                f"{score.name} is {value}", where=f"layer {key}",
                hint="its weights or hidden states hold inf or nan: check the model",
            )  # fmt: skip
