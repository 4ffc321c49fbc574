"""Carries out evaluations and gates on the live model of a step; what was measured before is not measured again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch

from surgeon.backend.data.tokens import Tokens
from surgeon.backend.device import choose_device, choose_dtype
from surgeon.backend.digests import contents_digest, side_digest
from surgeon.backend.evaluation.divergence import divergences
from surgeon.backend.evaluation.items import Items, read_items
from surgeon.backend.evaluation.live_model import LiveModel, live_model
from surgeon.backend.evaluation.model_outputs import greedy_answers, log_likelihoods
from surgeon.backend.evaluation.speed import prompt_of, require_own_speed, speed
from surgeon.backend.model.input_limits import refuse_unreadable
from surgeon.backend.model.loading import load_tokenizer
from surgeon.backend.model.losses import IGNORED
from surgeon.backend.model.streaming import fits_in_memory
from surgeon.backend.quantised_loading import loaded_in
from surgeon.backend.scoring.score_cache import ScoreCache
from surgeon.core.events import Evaluated
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.evaluation_metrics import BY_LIKELIHOOD, EvaluationResult, Measure, RawResults, figures_of
from surgeon.core.recipe.learning_step import draft_state
from surgeon.core.recipe.read_only_step import Bound, ReadOnlyStep
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.scoring.score import Average
from surgeon.errors import GateError, ScoreError

_VERSION = 2
"""Raised whenever the same inputs would give other numbers."""


class Evaluator:
    """Looks at the models of one recipe, step by step.

    `stream` leaves layers on disk where that can be; None does where the model does not fit in memory.
    """

    def __init__(self, recipe: Recipe, base: Draft, job: JobContext, *, stream: bool | None = None) -> None:
        """Measure nothing yet."""
        self._stream = stream
        self._speeds: dict[Any, RawResults] = {}
        self._recipe, self._base, self._job = recipe, base, job
        self._root = job.root
        self._device = choose_device(job.device)
        self._dtype = choose_dtype(job.dtype or "float32", self._device)
        self._cache = ScoreCache(base.structure.checkpoint)
        self._tokenizer: Any = None

    def evaluate(
        self, draft: Draft, step: ReadOnlyStep, number: int, *, looking: bool = False
    ) -> Iterator[EvaluationResult]:
        """Carry out a step and yield what it finds.

        `looking`: a gate that is not met is told in the result and stops nothing, and the base is measured too.

        Raises:
            GateError: a figure is out of its bounds.   DataError, RecipeError: the data or a bound says nothing.
        """
        bounds = step.bounds()
        for name, measure in step.measures().items():
            self._job.log(f"steps[{number}].{step.name}: measuring {name}")
            raw = self._raw(draft, measure)
            base = self._raw(self._base, measure) if measure.kind == "pairs" else None
            figures = figures_of(measure, raw, base)
            bound = bounds.get(name)
            compared = looking and measure.kind not in ("pairs", "divergence", "tasks", "speed")
            relative = bound is not None and bound.relative
            untouched = self._figures_of_base(measure) if compared or relative else {}
            result = EvaluationResult(
                step=number, name=name if bounds else step.title, metric=name, data=measure.data,
                examples=len(raw.values), figures=figures, base=dict(untouched), measured_on=raw.measured_on,
            )  # fmt: skip
            self._job.emit(Evaluated(evaluation=msgspec.to_builtins(result)))
            if bound is not None:
                where = f"steps[{number}].{step.name}.{name}"
                result = _judged(result, bound, name, untouched.get(name) if relative else None, where, looking)
            yield result

    def compare(self, before: Draft, after: Draft, number: int) -> Iterator[EvaluationResult]:
        """Yield how far the model after a step is from the one before it, which is held quantised as it was trained.

        On the running text of the recipe's first evaluation that has any; where none has, nothing is measured. Nor is
        it where both are held alike.
        """
        measure = next(self._texts(), None)
        if measure is None or loaded_in(before) is None or loaded_in(after) is not None:
            return
        self._job.log(f"steps[{number}]: measuring kl of the merged model from the one that was trained")
        data = self._recipe.data.get(measure.data, measure.data) if measure.data else None
        items = read_items(measure, data, self._root, self._own_tokenizer())
        with self._live(before, self._dtype) as held, self._live(after, self._dtype) as merged:
            live = LiveModel(merged.model, lambda: nullcontext(held.model))
            raw = self._measured(live, items, measure)
        result = EvaluationResult(
            step=number, name="merged", metric="kl", data=measure.data, examples=len(raw.values),
            figures=figures_of(measure, raw, None), base={},
        )  # fmt: skip
        self._job.emit(Evaluated(evaluation=msgspec.to_builtins(result)))
        yield result

    def _texts(self) -> Iterator[Measure]:
        """Yield divergences on every running text that the recipe evaluates on."""
        for step in self._recipe.steps:
            if isinstance(step.operation, ReadOnlyStep):
                for measure in step.operation.measures().values():
                    if measure.kind in ("text", "divergence") and measure.data is not None:
                        yield msgspec.structs.replace(measure, kind="divergence")

    def _figures_of_base(self, measure: Measure) -> Mapping[str, Average]:
        raw = self._raw(self._base, measure)
        return figures_of(measure, raw, raw)

    def _raw(self, draft: Draft, measure: Measure) -> RawResults:
        """Return what the model gives, from the cache if it is there."""
        if measure.kind == "tasks":
            return self._by_harness(draft, measure)
        tokenizer = self._own_tokenizer()
        data = self._recipe.data.get(measure.data, measure.data) if measure.data else None
        items = read_items(measure, data, self._root, tokenizer)
        if items.unread:
            self._job.warn(items.unread)
        if items.left_out:
            text = f"{measure.data}: {items.left_out} rows are longer than {measure.max_length} tokens and left out"
            self._job.warn(text)
        answering = (measure.max_new_tokens, self._answering()) if measure.kind == "answers" else None
        if measure.kind == "speed":
            return self._speed(draft, items, measure)
        asked = (measure.kind, items.digest, answering)
        stream = self._streams and measure.kind in BY_LIKELIHOOD and not compile_plan(draft).adapters
        if self._stream and not stream:
            raise ScoreError(
                f"{measure.kind} cannot be measured layer by layer from disk", where="stream",
                allowed=f"without adapters: {', '.join(BY_LIKELIHOOD)}", hint="measure it where all fits in memory",
            )  # fmt: skip
        return self._cached(draft, asked, lambda live: self._measured(live, items, measure), stream=stream)

    @cached_property
    def _streams(self) -> bool:
        """Whether layers stay on disk; asked once, before any model takes up the memory."""
        checkpoint = self._base.structure.checkpoint
        if self._stream is not None:
            return self._stream
        return checkpoint.load_in is None and not fits_in_memory(checkpoint, self._dtype, self._device)

    def _speed(self, draft: Draft, items: Items, measure: Measure) -> RawResults:
        """Measure speed, in the dtype in which the model would be used here; kept for this run alone."""
        name = msgspec.json.encode((weights_state(draft), measure))
        if name not in self._speeds:
            dtype = choose_dtype(self._job.dtype, self._device)
            require_own_speed(self._base, dtype, self._device, "metric: speed", stream=bool(self._stream))
            prompt = prompt_of(items, measure.max_length)
            asked = [Tokens(prompt, [IGNORED] * len(prompt))]
            with self._live(draft, dtype) as live:
                refuse_unreadable(live.model, asked, measure.data or "data", "max_length", measure.max_new_tokens - 1)
                self._speeds[name] = speed(
                    live.model, live.as_base, prompt, measure.max_new_tokens, measure.rounds,
                    lambda done: self._proceed(done, measure.rounds, "rounds"),
                )  # fmt: skip
        return self._speeds[name]

    def _proceed(self, done: int, total: int, unit: str) -> None:
        self._job.stop_if_cancelled()
        self._job.progress(done, total, unit, "evaluating")

    def _cached(self, draft: Draft, asked: tuple[Any, ...], measured: Any, *, stream: bool = False) -> RawResults:
        state, seed = weights_state(draft), self._recipe.seed
        made_of: tuple[Any, ...] = ("evaluation", _VERSION, state, asked, str(self._dtype), seed)
        if len(draft.checkpoints) > 1:  # the cache knows the base's bytes alone
            made_of = (*made_of, contents_digest(draft.checkpoints))
        known = self._cache.get(RawResults, *made_of)
        if known is None:
            with self._live(draft, self._dtype, stream=stream) as live:
                known = measured(live)
            self._cache.check()
            self._cache.put(known, *made_of)
            self._cache.trim()
        return known

    def _measured(self, live: LiveModel, items: Items, measure: Measure) -> RawResults:
        model = live.model
        sequences = [one for example in items.examples for one in example]
        written = measure.max_new_tokens - 1 if measure.kind == "answers" else 0  # the last is not read again
        settings = "max_length, or max_new_tokens" if written else "max_length"
        refuse_unreadable(model, sequences, measure.data or "data", settings, written)

        def tell(done: int) -> None:
            self._proceed(done, len(sequences), "sequences")

        if measure.kind == "answers":
            told = greedy_answers(model, self._own_tokenizer(), sequences, measure.max_new_tokens, tell)
            hits = [[float(text.strip() == right)] for text, right in zip(told, items.texts, strict=True)]
            return RawResults(values=hits)
        words = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        if measure.kind == "divergence":
            if live.streamed is not None:
                values = live.streamed.divergences(sequences, words)
            else:
                values = divergences(model, live.as_base, sequences, words, tell)
            return RawResults(values=values, sizes=[list(row) for row in items.sizes])
        if live.streamed is not None:
            sums = iter(live.streamed.log_likelihoods(sequences, words))
        else:
            sums = iter(log_likelihoods(model, sequences, words, tell))
        values = [[next(sums) for _ in example] for example in items.examples]
        if measure.kind in ("text", "responses"):
            values = [[-value for value in row] for row in values]
        return RawResults(
            values=values, sizes=[list(row) for row in items.sizes], answers=list(items.answers), nbytes=items.nbytes
        )

    def _by_harness(self, draft: Draft, measure: Measure) -> RawResults:
        from surgeon.backend.evaluation.lm_eval import harness_figures, harness_version

        def measured(live: LiveModel) -> RawResults:
            return harness_figures(live.model, self._own_tokenizer(), measure, self._recipe.seed)

        if any(Path(task).exists() for task in measure.tasks):  # nobody knows which other files it names
            with self._live(draft, self._dtype) as live:
                return measured(live)
        asked = ("lm_eval", harness_version(), measure.tasks, measure.rows, measure.max_length, self._answering())
        return self._cached(draft, asked, measured)

    def _answering(self) -> str:
        """Return what tells apart tokenizers and ends of answers, where more than given tokens are measured."""
        return side_digest(self._base.structure.checkpoint, answering=True)

    def _own_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._base.structure.checkpoint)
        return self._tokenizer

    def _live(
        self, draft: Draft, dtype: torch.dtype | None, *, stream: bool = False
    ) -> AbstractContextManager[LiveModel]:
        return live_model(draft, dtype, self._device, self._recipe.seed, self._job, stream=stream)


def _judged(
    result: EvaluationResult, bound: Bound, name: str, base: Average | None, where: str, looking: bool
) -> EvaluationResult:
    try:
        said = bound.judge(name, result.figures[name], base, where)
    except GateError as error:
        if not looking:
            raise
        return msgspec.structs.replace(result, bounds={name: error.allowed}, unmet={name: error.what})
    return msgspec.structs.replace(result, bounds={name: said})


def weights_state(draft: Draft) -> Any:
    """Return everything about a draft that its function depends on: all but freezes and weight masks."""
    stacks = {
        name: tuple(replace(layer, frozen=frozenset()) for layer in layers) for name, layers in draft.stacks.items()
    }
    return draft_state(replace(draft, stacks=stacks, frozen=frozenset(), mask=None))
