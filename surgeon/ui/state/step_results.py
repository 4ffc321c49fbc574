"""What evaluations and gates found, by the steps that led there; a result holds for as long as those steps do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from surgeon.core.recipe.evaluation_metrics import EvaluationResult
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.core.recipe.recipe import Step, step_to_builtins
from surgeon.core.scoring.score import Average

Results = tuple[EvaluationResult, ...]


class StepResults:
    """Results by everything up to their step."""

    def __init__(self) -> None:
        self._by_steps: dict[bytes, dict[str, EvaluationResult]] = {}

    def take(self, steps: Sequence[Step], results: Iterable[EvaluationResult]) -> None:
        """Keep results of a recipe's steps; one of the same figure at the same step replaces the older."""
        for result in results:
            known = self._by_steps.setdefault(_key(steps[: result.step + 1]), {})
            known[f"{result.metric} {result.data} {result.examples}"] = result

    def of(self, steps: Sequence[Step], number: int) -> Results:
        """Return what the step at `number` found; empty where it was not carried out on these steps."""
        return tuple(self._by_steps.get(_key(steps[: number + 1]), {}).values())

    def measured_after(self, steps: Sequence[Step]) -> Iterator[EvaluationResult]:
        """Yield the results of the last steps that only look: figures of the model that they leave as it is."""
        for number in range(len(steps) - 1, -1, -1):
            if not isinstance(steps[number].operation, ReadOnlyStep):
                return
            yield from self.of(steps, number)


def _key(steps: Sequence[Step]) -> bytes:
    return msgspec.json.encode([step_to_builtins(step) for step in steps])


def results_of(plain: Iterable[Mapping[str, Any]]) -> list[EvaluationResult]:
    """Return evaluations from plain data."""
    return [msgspec.convert(one, EvaluationResult) for one in plain]


def average_text(average: Average) -> str:
    """Write a figure with its standard error: `18.92 ±0.41`."""
    return f"{average.value:.4g}" + (f" ±{average.error:.2g}" if average.error is not None else "")


def result_text(result: EvaluationResult) -> str:
    """Write what an evaluation came to: the figure, the base's beside it, and whether a bound is met."""
    figure = result.metric if result.metric in result.figures else next(iter(result.figures), "")
    if not figure:
        return result.name
    text = f"{figure} {average_text(result.figures[figure])}"
    base = result.base.get(figure)
    text += f" (base {average_text(base)})" if base is not None else ""
    if result.bounds:
        text += f" {'✗ not met' if result.unmet else '✓ met'}: {next(iter(result.bounds.values()))}"
    return text
