"""Stops a recipe whose model is not good enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.evaluation_metrics import KINDS, Measure
from surgeon.core.recipe.operation import Chosen
from surgeon.core.recipe.read_only_step import Bound, ReadOnlyStep
from surgeon.errors import RecipeError


class Require(ReadOnlyStep, frozen=True, kw_only=True):
    """Measure figures of the model at this step and go on only if they are within their bounds: a gate.

    `at_most` and `at_least` take a number, or a multiple of the base model's figure on the same data, such as 1.05x. A
    gate that is not met ends the run with exit code 3 before anything is written. What an `evaluate` step has measured
    on the same data is not measured again.
    """

    name = "require"
    key = "R"
    summary = "go on only if figures are within bounds (a gate; exit code 3)"

    perplexity: Annotated[Bound | None, msgspec.Meta(description="of running text")] = None
    bits_per_byte: Annotated[Bound | None, msgspec.Meta(description="of running text")] = None
    response_perplexity: Annotated[Bound | None, msgspec.Meta(description="of responses alone")] = None
    kl: Annotated[Bound | None, msgspec.Meta(description="of the base's next tokens from the model's, in nats")] = None
    top1_agreement: Annotated[Bound | None, msgspec.Meta(description="share of tokens rated highest by both")] = None
    multiple_choice: Annotated[Bound | None, msgspec.Meta(description="share of right choices")] = None
    multiple_choice_normalised: Annotated[Bound | None, msgspec.Meta(description="the same per byte")] = None
    exact_match: Annotated[Bound | None, msgspec.Meta(description="share of right answers")] = None
    preference: Annotated[Bound | None, msgspec.Meta(description="share of pairs in which the chosen wins")] = None
    preference_margin: Annotated[Bound | None, msgspec.Meta(description="chosen less rejected, in nats")] = None
    reward_accuracy: Annotated[Bound | None, msgspec.Meta(description="the same against the base")] = None
    reward_margin: Annotated[Bound | None, msgspec.Meta(description="DPO's margin against the base")] = None

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Return the draft as it was, if what is required says something."""
        bounds = self.bounds()
        if not bounds:
            figures = ", ".join(name for name in self.__struct_fields__ if name in KINDS)
            raise RecipeError("requires nothing", allowed=figures, hint="perplexity: {data: docs, at_most: 1.05x}")
        for name, bound in bounds.items():
            if not bound.limits:
                raise RecipeError("has no bound", where=name, allowed="at_most, at_least")
            if bound.data is None and KINDS[name] not in ("text", "divergence"):
                raise RecipeError("is needed", where=f"{name}.data", hint="name a file of its rows")
            if bound.relative and (name.startswith("reward") or KINDS[name] == "divergence"):
                raise RecipeError("is told against the base already", where=name, allowed="a number")
        return draft

    def measures(self) -> Mapping[str, Measure]:
        """Return what to measure, by figure."""
        return {name: bound.measure(name) for name, bound in self.bounds().items()}

    def bounds(self) -> Mapping[str, Bound]:
        """Return the bounds that are set, by figure."""
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name in KINDS}
        return {name: bound for name, bound in given.items() if bound is not None}
