"""Carries out a search step: measures the model without sets of layers, each set once, what they share once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from surgeon.backend.scoring.context import (
    ScoringContext,
    calibration_of,
    draft_to_measure,
    provenance_of,
    scoring_context,
    settings_of,
)
from surgeon.backend.scoring.score_cache import ScoreCache
from surgeon.backend.scoring.score_runner import measure
from surgeon.backend.scoring.sweep_pass import path_losses
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import RecipeJob
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.scoring.costs import head_in_layers, sequence_forwards
from surgeon.core.scoring.layer_variants import whole
from surgeon.core.scoring.removal_search import Candidate, Gone, SearchResult, beam_search, with_front
from surgeon.core.scoring.score import Average, Score, average, paired_average
from surgeon.core.selection.budget_layers import without
from surgeon.core.selection.ranking import extreme_layers
from surgeon.errors import ArchitectureError, SelectionError
from surgeon.operations.search import Search

_VERSION = 1
"""Raised whenever the same inputs would give other numbers."""


def search(
    draft: Draft, step: Search, number: int, recipe: Recipe, request: RecipeJob, job: JobContext
) -> SearchResult:
    """Return what a search step comes to on a draft; what was searched before is not searched again.

    Raises:
        ArchitectureError: the layers are not of the stack that losses are measured on.
        ScoreError, DataError: as measuring a score does.
    """
    stack = draft.structure.stack()
    if draft.structure.stack(step.stack).name != stack.name:
        raise ArchitectureError(
            "losses are measured on the layers of the default stack", where=f"stack {step.stack}", allowed=stack.name
        )
    data = recipe.data.get(step.data, step.data) if step.data else request.data
    settings = replace(
        settings_of(request), data=data, seed=recipe.seed, sequences=step.sequences, length=step.length
    )  # fmt: skip
    measured = draft_to_measure(draft, settings)
    calibration = calibration_of(measured, settings, job)
    scores = {name: measure(measured, [name], settings, job)[0] for name in step.by}
    cache = ScoreCache(*draft.checkpoints)
    plain = msgspec.to_builtins(step, enc_hook=str)
    layers = [(layer.key, layer.settings) for layer in measured.layers()]
    made_of = ("search", _VERSION, provenance_of(measured, settings, calibration), plain, layers)
    found = cache.get(SearchResult, *made_of)
    if found is None:
        with scoring_context(measured, settings, calibration, settings.first_batch, job) as context:
            found = _Searching(context, measured, step, scores).result()
        cache.check()
        cache.put(found, *made_of)
        cache.trim()
    return msgspec.structs.replace(found, step=number, data=step.data)


@dataclass
class _Searching:
    """One search: what it may remove, and the losses that are known."""

    context: ScoringContext
    draft: Draft
    step: Search
    scores: Mapping[str, Score]
    losses: dict[Gone, list[float]] = field(default_factory=dict)
    forwards: float = 0.0

    def result(self) -> SearchResult:
        """Search, and return what was tried.

        Raises:
            SelectionError: fewer layers may go than are to be removed.
        """
        layers = self.draft.layers()
        (selection,) = self.step.selections().values()
        (term,) = selection.ranked()
        kept = {position for part in term.protect for position in part.positions(layers)}
        free = [position for position in range(len(layers)) if position not in kept]
        if self.step.remove > min(len(free), len(layers) - 1):
            raise SelectionError(
                f"asks for {self.step.remove} of {len(layers)} layers, of which {len(free)} may go", where="remove",
                allowed="at least one layer must stay",
            )  # fmt: skip
        ranked = {
            name: tuple(sorted(extreme_layers("lowest", term.count, score, layers, kept)))
            for name, score in self.scores.items()
        }
        base = self._measure([(), *ranked.values()])[()]
        found = {gone: name for name, gone in ranked.items()}
        if self.step.width:
            found |= dict.fromkeys(beam_search(free, self.step.remove, self.step.width, self._rises), "search")
        tried = [self._candidate(gone, name) for gone, name in found.items()]
        best = min((one for one in tried if len(one.layers) == self.step.remove), key=lambda one: one.rise.value)
        candidates = [msgspec.structs.replace(one, kept=one == best) for one in tried]
        return SearchResult(
            step=0, data=None, base_loss=average(base).value, measured=len(self.losses) - 1,
            forwards=self.forwards, candidates=with_front(candidates),
        )  # fmt: skip

    def _candidate(self, gone: Gone, found_by: str) -> Candidate:
        plan = compile_plan(without(self.draft, None, gone))
        rise = paired_average(self.losses[gone], self.losses[()])
        return Candidate(layers=gone, found_by=found_by, parameters=plan.parameters, rise=rise)

    def _rises(self, sets: Sequence[Gone]) -> Mapping[Gone, Average]:
        known = self._measure(sets)
        found = {gone: paired_average(known[gone], self.losses[()]) for gone in sets}
        finite = {gone: rise for gone, rise in found.items() if math.isfinite(rise.value)}
        best = min(finite, key=lambda gone: finite[gone].value, default=())
        self.context.job.log(f"search: without {', '.join(map(str, best))} the loss rises by {found[best].value:.4f}")
        return found

    def _measure(self, sets: Sequence[Gone]) -> Mapping[Gone, list[float]]:
        """Measure the sets that are not known: beginnings that they share are run once."""
        layers = len(self.context.keys)
        wanted = [gone for gone in dict.fromkeys(sets) if gone not in self.losses]
        paths = {gone: tuple(call for call in whole(layers) if call.layer not in gone) for gone in wanted}
        self.forwards += sequence_forwards(list(paths.values()), layers, head_in_layers(self.context.draft))
        by_path = dict(path_losses(self.context, list(paths.values()), "search"))
        self.losses |= {gone: by_path[path] for gone, path in paths.items()}
        return self.losses
