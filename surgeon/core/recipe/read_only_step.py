"""Steps that look at the model and leave it as it is: evaluations, and gates that stop a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.evaluation_metrics import KINDS, Measure, Positive
from surgeon.core.recipe.operation import Chosen, Operation
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.scoring.score import Average
from surgeon.errors import GateError, RecipeError, UsageError

Limit = float | Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+)?x$")]
"""A number, or `1.05x`: so many times the base model's figure on the same data."""


class ReadOnlyStep(Operation, frozen=True, kw_only=True):
    """What every step declares that leaves the draft as it is."""

    needs_model = True

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Return the draft as it was."""
        del chosen
        return draft

    def measures(self) -> Mapping[str, Measure]:
        """Return what to measure, by the metric or figure that is asked for."""
        raise NotImplementedError

    def bounds(self) -> Mapping[str, Bound]:
        """Return what figures must come to; empty where nothing is required."""
        return {}

    @property
    def title(self) -> str:
        """What to call the results."""
        return self.name


def is_read_only(recipe: Recipe) -> bool:
    """Whether a recipe leaves the model as it is, so that nothing has to be written."""
    return bool(recipe.steps) and all(isinstance(step.operation, ReadOnlyStep) for step in recipe.steps)


def output_directory(recipe: Recipe, out: str | None) -> Path | None:
    """Return where the result of a recipe goes.

    Raises:
        UsageError: it is needed and not said.
    """
    if out is None and not is_read_only(recipe):
        raise UsageError("a recipe that changes the model needs a directory for the result", where="out")
    return None if out is None else Path(out)


class Bound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one figure must come to on some data."""

    data: Annotated[str | None, msgspec.Meta(description="a name from the recipe's data, or a file")] = None
    at_most: Annotated[Limit | None, msgspec.Meta(description="a number, or 1.05x: times the base's figure")] = None
    at_least: Annotated[Limit | None, msgspec.Meta(description="a number, or 0.95x: times the base's figure")] = None
    max_length: Annotated[int, msgspec.Meta(ge=4)] = 512
    rows: Positive | None = None
    max_new_tokens: Positive = 64
    beta: Annotated[float, msgspec.Meta(gt=0)] = 0.1

    @property
    def limits(self) -> dict[str, float | str]:
        """The limits that are set, by their name."""
        given = {"at_most": self.at_most, "at_least": self.at_least}
        return {name: limit for name, limit in given.items() if limit is not None}

    @property
    def relative(self) -> bool:
        """Whether a limit is a multiple of the base model's figure."""
        return any(isinstance(limit, str) for limit in self.limits.values())

    def measure(self, figure: str) -> Measure:
        """Return what has to be measured."""
        return Measure(
            kind=KINDS[figure], data=self.data, max_length=self.max_length, rows=self.rows,
            max_new_tokens=self.max_new_tokens, beta=self.beta,
        )  # fmt: skip

    def judge(self, figure: str, found: Average, base: Average | None, where: str) -> str:
        """Return in words what was required, once it is met.

        Raises:
            GateError: it is not met.   RecipeError: a multiple of the base's figure says nothing.
        """
        said = []
        for name, limit in self.limits.items():
            number, text = _number(limit, base, f"{where}.{name}")
            words = f"{name.replace('_', ' ')} {text}"
            # Written so that a figure that is no number meets nothing.
            if not (found.value <= number if name == "at_most" else found.value >= number):
                spread = f" ± {found.error:.2g}" if found.error is not None else ""
                against = f", {found.value / base.value:.4g} times the base's {base.value:.4g}" if base else ""
                raise GateError(
                    f"{figure} is {found.value:.4g}{spread}{against}", where=where, allowed=words,
                    hint="nothing was written; change the recipe, or the bound",
                )  # fmt: skip
            said.append(words)
        return ", ".join(said)


def _number(limit: float | str, base: Average | None, where: str) -> tuple[float, str]:
    if not isinstance(limit, str):
        return limit, f"{limit:.6g}"
    assert base is not None, "multiples are told of the base's figure"
    if not base.value > 0:
        raise RecipeError(
            f"is a multiple of the base's figure, which is {base.value:.4g}", where=where, allowed="a number"
        )
    number = float(limit[:-1]) * base.value
    return number, f"{limit} ({number:.6g})"
