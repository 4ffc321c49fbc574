"""Measures the model at a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.evaluation_metrics import KINDS, Measure, Metric, Positive
from surgeon.core.recipe.operation import Chosen
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.errors import RecipeError


class Evaluate(ReadOnlyStep, frozen=True, kw_only=True):
    """Measure the model as it is at this step, with what was learned and with its adapters; change nothing.

    Computed in float32 unless told otherwise. Text is packed, and each token of it is predicted once. Questions,
    answers and pairs take the form of the model's chat template, where it has one. Results go into the export and its
    card.
    """

    name = "evaluate"
    key = "m"
    summary = "measure the model: perplexity, KL divergence from the base, multiple choice, exact match, preferences"
    paper = "rewards: Direct Preference Optimization, arXiv:2305.18290, section 5"

    metric: Annotated[Metric, msgspec.Meta(description="what to measure")] = "perplexity"
    data: Annotated[
        str | None, msgspec.Meta(description="a name from the recipe's data, or a file; none: built-in text")
    ] = None
    label: Annotated[str | None, msgspec.Meta(description="what to call the result")] = msgspec.field(
        name="name", default=None
    )
    max_length: Annotated[int, msgspec.Meta(ge=4, description="tokens that the model sees at once")] = 512
    rows: Annotated[Positive | None, msgspec.Meta(description="at most so many rows of the data")] = None
    max_new_tokens: Annotated[Positive, msgspec.Meta(description="of a generated answer")] = 64
    beta: Annotated[float, msgspec.Meta(gt=0, description="factor of the rewards in preference")] = 0.1
    tasks: Annotated[tuple[str, ...], msgspec.Meta(description="with lm_eval: the harness's names")] = ()

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Return the draft as it was, if what is asked can be measured."""
        if (self.metric == "lm_eval") != bool(self.tasks):
            raise RecipeError("go with `metric: lm_eval`", where="tasks", allowed="metric: lm_eval, tasks: [piqa]")
        if self.data is None and KINDS[self.metric] in ("responses", "choices", "answers", "pairs"):
            raise RecipeError(f"is needed for {self.metric}", where="data", hint="name a file of its rows")
        return draft

    def measures(self) -> Mapping[str, Measure]:
        """Return the one thing to measure."""
        return {
            self.metric: Measure(
                kind=KINDS[self.metric], data=self.data, max_length=self.max_length, rows=self.rows,
                max_new_tokens=self.max_new_tokens, beta=self.beta, tasks=self.tasks,
            )
        }  # fmt: skip

    @property
    def title(self) -> str:
        """What to call the results."""
        return self.label or self.metric
