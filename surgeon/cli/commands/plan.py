"""`surgeon plan`: what scores, or the steps of a recipe, take before any of it is done. Reads headers alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from surgeon.cli.dry_run import Folded, fold_recipe
from surgeon.cli.formatting import bytes_text, duration_text, print_json, table
from surgeon.cli.options import SurgeonCommand, as_json
from surgeon.cli.options import device as device_option
from surgeon.cli.options import dtype as dtype_option
from surgeon.cli.options import worker as worker_option
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.cli.scoring_options import base_recipe
from surgeon.core.job_results import CalibrateResult
from surgeon.core.jobs import CalibrateJob
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.evaluation_metrics import BY_LIKELIHOOD
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.core.recipe.recipe import Step, load_recipe
from surgeon.core.resources.estimates import Estimator, Work
from surgeon.core.resources.machine import Machine, known_machine
from surgeon.core.scoring.requests import requested_scores, split_requests
from surgeon.errors import UsageError
from surgeon.operations.search import Search

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


@click.command("plan", cls=SurgeonCommand)
@click.argument("target", metavar="MODEL|RECIPE")
@click.option("--by", metavar="A,B", default="all", show_default=True, help="Of a model: the scores.")
@click.option("--sequences", type=click.IntRange(1), default=12, show_default=True, help="How many pieces of text.")
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in each piece.")
@click.option("--memory", metavar="BYTES", help="Of the device, such as 24GB; by default all that it has.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="How many train together.")
@click.option("--again", is_flag=True, help="Measure the machine again.")
@device_option
@dtype_option
@worker_option
@as_json
@click.pass_obj
def command(
    reporter: ConsoleReporter, /, target: str, by: str, sequences: int, length: int, memory: str | None, gpus: int,
    device: str | None, dtype: str | None, worker: str | None, again: bool, as_json: bool,
) -> None:  # fmt: skip
    """Tell what scores of MODEL, or the steps of RECIPE, take in memory, bytes read and written, forwards and time.

    Reads headers alone. The first time, a few products, copies and reads are measured on this machine, and kept.
    """
    usable = None if memory is None else _bytes(memory)
    path = Path(target)
    is_recipe = path.suffix in (".yaml", ".yml", ".json") and path.is_file()
    recipe = load_recipe(path) if is_recipe else base_recipe(target, None, trust=False)
    folded = fold_recipe(recipe, path if is_recipe else None)
    machine = _machine(reporter, device, dtype, worker, again=again)
    estimator = Estimator(machine, usable or machine.memory_bytes, gpus)
    tokens = sequences * length
    if is_recipe:
        works = list(_steps(estimator, folded, tokens))
    else:
        kinds = requested_scores(split_requests(by))
        works = [*estimator.scores(folded.drafts[0], kinds, tokens, "score"), estimator.export(folded.plan)]
    reporter.finish()
    if as_json:
        print_json({
            "model": recipe.base.model, "machine": machine, "memory_bytes": estimator.memory, "gpus": gpus,
            "fits": all(work.fits for work in works), "work": works, "unknown": folded.unknown,
        })  # fmt: skip
    else:
        _show(works, estimator, folded.unknown)


def _machine(
    reporter: ConsoleReporter, device: str | None, dtype: str | None, worker: str | None, *, again: bool
) -> Machine:
    known = None if again or worker is not None else known_machine(device, dtype)
    if known is not None:
        return known
    from surgeon.client import run_job

    result = run_job(CalibrateJob(device=device, dtype=dtype), reporter.on_event, worker)
    assert isinstance(result, CalibrateResult)
    return msgspec.convert(result.machine, Machine)


def _steps(estimator: Estimator, folded: Folded, tokens: int) -> Iterator[Work]:
    """Yield what the steps of a recipe take, as far as they can be foreseen, and the export."""
    drafts, steps = folded.drafts, folded.recipe.steps
    for number, (step, draft) in enumerate(zip(steps, drafts[:-1], strict=False)):
        title = f"{number}: {step.operation.name}"
        report = folded.reports[number]
        if report.measure:
            kinds = requested_scores([str(one["score"]) for one in report.measure], title)
            rounds = step.operation.rounds if isinstance(step.operation, Search) else 1
            yield from estimator.scores(draft, kinds, tokens, title, rounds=rounds)
        yield from _step(estimator, step, draft, title, learns=report.learn is not None)
    if not folded.unknown:
        yield estimator.export(folded.plan)


def _step(estimator: Estimator, step: Step, draft: Draft, title: str, *, learns: bool) -> Iterator[Work]:
    operation = step.operation
    if isinstance(operation, LearningStep) and learns:
        plan: Plan = compile_plan(draft)
        yield estimator.training(operation, draft, plan, _tokens(operation), title)
    elif isinstance(operation, ReadOnlyStep):
        layerwise = all(one.kind in BY_LIKELIHOOD for one in operation.measures().values())
        yield estimator.evaluation(draft, title, streams=layerwise and not compile_plan(draft).adapters)


def _tokens(step: LearningStep) -> int | None:
    """Return how many tokens a step trains on at most; None where its data say."""
    if step.tokens is not None:
        return step.tokens
    return None if step.steps is None else step.steps * step.batch_size * step.max_length


def _show(works: list[Work], estimator: Estimator, unknown: str) -> None:
    rows = [
        (
            work.step, bytes_text(work.memory_bytes), bytes_text(work.read_bytes), bytes_text(work.written_bytes),
            "–" if work.forwards is None else f"{work.forwards:.1f}",
            "as its data say" if work.seconds is None else duration_text(work.seconds),
            ("yes" if not work.setting else f"with {work.setting}") if work.fits else f"no: {work.setting}",
        )
        for work in works
    ]  # fmt: skip
    click.echo(table(
        ("step", "memory", "read", "written", "forwards", "time", "fits"), rows, "memory read written forwards time"
    ))  # fmt: skip
    machine = estimator.machine
    click.echo(
        f"\n{bytes_text(estimator.memory)} on {machine.device}; {machine.dtype} products at "
        f"{machine.operations / 1e9:.0f} GFLOP/s, disk at {bytes_text(round(machine.read))}/s"
    )
    if unknown:
        click.echo(unknown)


def _bytes(text: str) -> int:
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no amount of memory", where="--memory", allowed="such as 24GB, 80GiB, 512MB")
    number, unit, binary = found.groups()
    power = list(_UNITS).index(unit.upper())
    return round(float(number) * (1024**power if binary else _UNITS[unit.upper()]))
