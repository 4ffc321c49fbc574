"""Evaluations by EleutherAI's lm-evaluation-harness, on the model as it lies in memory: nothing has to be exported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from surgeon.core.recipe.evaluation_metrics import Measure, RawResults
from surgeon.core.scoring.score import Average
from surgeon.errors import DataError, UsageError

_BOOTSTRAPS = 1000


def harness_version() -> str:
    """Return the version that is installed: other versions may come to other figures.

    Raises:
        UsageError: none is.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError as error:
        raise UsageError(
            "the package lm-eval is not installed", where="metric: lm_eval",
            allowed="perplexity, bits_per_byte, multiple_choice, exact_match and preference without it",
            hint="pip install 'model-surgeon[lm-eval]'",
        ) from error  # fmt: skip


def harness_figures(model: nn.Module, tokenizer: Any, measure: Measure, seed: int) -> RawResults:
    """Run the harness's tasks on a loaded model; figures are called `task/metric`, with the harness's standard errors.

    Raises:
        DataError: there is no such task, or its data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    live: Any = model
    wrapped = HFLM(pretrained=live, tokenizer=tokenizer, max_length=measure.max_length, batch_size=4)
    try:
        found = simple_evaluate(
            model=wrapped, tasks=list(measure.tasks), limit=measure.rows, task_manager=TaskManager(),
            bootstrap_iters=_BOOTSTRAPS, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
            fewshot_random_seed=seed,
        )  # fmt: skip
    except (KeyError, OSError, ValueError, ConnectionError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"the harness cannot run them: {said}", where="tasks",
            allowed="names that `lm_eval ls tasks` lists, or paths of task files",
            hint="their data may need the network",
        ) from error  # fmt: skip
    assert found is not None, "one process has all results"
    return RawResults(figures=named_figures(found["results"]))


def named_figures(results: dict[str, dict[str, Any]]) -> dict[str, Average]:
    """Return every number of the harness's table; a filter other than the usual one is named too."""
    figures = {}
    for task, row in sorted(results.items()):
        for key, value in row.items():
            metric, _, chosen = key.partition(",")
            if (
                metric.endswith("_stderr")
                or isinstance(value, bool)
                or not isinstance(value, int | float)
                or not chosen
            ):
                continue
            error = row.get(f"{metric}_stderr,{chosen}")
            name = f"{task}/{metric}" + (f",{chosen}" if chosen != "none" else "")
            figures[name] = Average(float(value), float(error) if isinstance(error, int | float) else None)
    return figures
