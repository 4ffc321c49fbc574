"""Carries out evaluations and gates on the live model of a step; what was measured before is not measured again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from surgeon.backend.device import choose_device, choose_dtype
from surgeon.backend.digests import contents_digest, side_digest
from surgeon.backend.evaluation.divergence import AsBase, divergences
from surgeon.backend.evaluation.items import Items, read_items
from surgeon.backend.evaluation.model_outputs import greedy_answers, log_likelihoods
from surgeon.backend.model.adapters import attached
from surgeon.backend.model.in_memory_executor import edited_model
from surgeon.backend.model.input_limits import refuse_unreadable
from surgeon.backend.model.loading import load_tokenizer, resident_model
from surgeon.backend.scoring.score_cache import ScoreCache
from surgeon.core.events import Evaluated
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import unfrozen
from surgeon.core.recipe.evaluation_metrics import EvaluationResult, Measure, RawResults, figures_of
from surgeon.core.recipe.learning_step import draft_state
from surgeon.core.recipe.read_only_step import Bound, ReadOnlyStep
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.scoring.score import Average
from surgeon.errors import GateError, RecipeError

_VERSION = 2
"""Raised whenever the same inputs would give other numbers."""


@dataclass(frozen=True)
class _LiveModel:
    """The model of a draft; `as_base` makes it the base while it is entered."""

    model: nn.Module
    as_base: AsBase


class Evaluator:
    """Looks at the models of one recipe, step by step."""

    def __init__(self, recipe: Recipe, base: Draft, job: JobContext) -> None:
        """Measure nothing yet."""
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
            compared = looking and measure.kind not in ("pairs", "divergence", "tasks")
            relative = bound is not None and bound.relative
            untouched = self._figures_of_base(measure) if compared or relative else {}
            result = EvaluationResult(
                step=number, name=name if bounds else step.title, metric=name, data=measure.data,
                examples=len(raw.values), figures=figures, base=dict(untouched),
            )  # fmt: skip
            self._job.emit(Evaluated(evaluation=msgspec.to_builtins(result)))
            if bound is not None:
                where = f"steps[{number}].{step.name}.{name}"
                result = _judged(result, bound, name, untouched.get(name) if relative else None, where, looking)
            yield result

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
        asked = (measure.kind, items.digest, answering)
        return self._cached(draft, asked, lambda live: self._measured(live, items, measure))

    def _cached(self, draft: Draft, asked: tuple[Any, ...], measured: Any) -> RawResults:
        made_of: tuple[Any, ...] = (
            "evaluation",
            _VERSION,
            weights_state(draft),
            asked,
            str(self._dtype),
            self._recipe.seed,
        )
        if len(draft.checkpoints) > 1:  # the cache knows the base's bytes alone
            made_of = (*made_of, contents_digest(draft.checkpoints))
        known = self._cache.get(RawResults, *made_of)
        if known is None:
            with self._live(draft) as live:
                known = measured(live)
            self._cache.check()
            self._cache.put(known, *made_of)
            self._cache.trim()
        return known

    def _measured(self, live: _LiveModel, items: Items, measure: Measure) -> RawResults:
        model = live.model
        sequences = [one for example in items.examples for one in example]
        written = measure.max_new_tokens - 1 if measure.kind == "answers" else 0  # the last is not read again
        settings = "max_length, or max_new_tokens" if written else "max_length"
        refuse_unreadable(model, sequences, measure.data or "data", settings, written)

        def tell(done: int) -> None:
            self._job.stop_if_cancelled()
            self._job.progress(done, len(sequences), "sequences", "evaluating")

        if measure.kind == "answers":
            told = greedy_answers(model, self._own_tokenizer(), sequences, measure.max_new_tokens, tell)
            hits = [[float(text.strip() == right)] for text, right in zip(told, items.texts, strict=True)]
            return RawResults(values=hits)
        words = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        if measure.kind == "divergence":
            values = divergences(model, live.as_base, sequences, words, tell)
            return RawResults(values=values, sizes=[list(row) for row in items.sizes])
        sums = iter(log_likelihoods(model, sequences, words, tell))
        values = [[next(sums) for _ in example] for example in items.examples]
        if measure.kind in ("text", "responses"):
            values = [[-value for value in row] for row in values]
        return RawResults(
            values=values, sizes=[list(row) for row in items.sizes], answers=list(items.answers), nbytes=items.nbytes
        )

    def _by_harness(self, draft: Draft, measure: Measure) -> RawResults:
        from surgeon.backend.evaluation.lm_eval import harness_figures, harness_version

        def measured(live: _LiveModel) -> RawResults:
            return harness_figures(live.model, self._own_tokenizer(), measure, self._recipe.seed)

        if any(Path(task).exists() for task in measure.tasks):  # nobody knows which other files it names
            with self._live(draft) as live:
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

    @contextmanager
    def _live(self, draft: Draft) -> Iterator[_LiveModel]:
        """Yield the model of a draft with what was learned and with its adapters, in evaluation mode."""
        plan = compile_plan(draft)
        if plan.pending:
            raise RecipeError("a learning step before this has not been carried out", hint="run the recipe")
        model = resident_model(draft.structure, self._dtype, self._device).model
        with edited_model(model, unfrozen(draft)) as edited:
            if not plan.adapters:
                yield _LiveModel(edited.model, edited.as_base)
                return
            with attached(edited.model, plan, self._recipe.seed) as (adapted, _):

                @contextmanager
                def as_base() -> Iterator[nn.Module]:
                    with adapted.disable_adapter(), edited.as_base():
                        yield adapted

                yield _LiveModel(adapted.eval(), as_base)


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
