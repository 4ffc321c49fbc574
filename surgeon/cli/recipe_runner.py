"""What `run` and the commands of the operations share: rehearse a recipe, show it, or carry it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from surgeon.cli.dry_run import DryRun, Folded, StepReport, fold_recipe
from surgeon.cli.formatting import bytes_text, change_text, count_text, print_json, setting_text, table, value_text
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.cli.proof_table import proof_table, refuse_failed
from surgeon.core.checkpoint.base_path import model_name
from surgeon.core.job_results import RunResult
from surgeon.core.jobs import RunJob
from surgeon.core.recipe.read_only_step import is_read_only
from surgeon.core.recipe.recipe import RESOLVED_KEYS, Recipe, recipe_to_builtins
from surgeon.core.selection.spans import spans
from surgeon.errors import ExportError, UsageError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a recipe is to be carried out. `root` is what its data files are relative to; `where` names its file."""

    root: Path
    where: Path | None = None
    out: Path | None = None
    dry_run: bool = False
    verify: bool = True
    device: str | None = None
    dtype: str | None = None
    worker: str | None = None
    as_json: bool = False


def run_recipe(recipe: Recipe, order: RunOptions, reporter: ConsoleReporter) -> RunResult | None:
    """Rehearse a recipe and, unless that is all that was asked, run it; returns the result of the run.

    Raises:
        SurgeonError: the recipe does not fit, or what the run raised.
    """
    if order.dry_run:
        show_dry_run(fold_recipe(recipe, order.where, order.root), order.as_json)
        return None
    # A mistake is told in milliseconds, before torch is loaded. A model that only the worker has cannot be looked at.
    if order.worker is None or Path(model_name(recipe.base.model, order.root)).expanduser().is_dir():
        fold_recipe(recipe, order.where, order.root)
    if order.out is None and not is_read_only(recipe):
        raise UsageError("--out DIR is missing", hint="name a new directory, or say --dry-run")
    out = None if order.out is None else order.out.expanduser().absolute()
    if out is not None and order.worker is None and out.exists():
        raise ExportError("is there already", where=str(out), allowed="a directory that does not exist yet")
    result = _run(recipe, order, out, reporter)
    _show_result(result, order.as_json, reporter)
    return result


def _run(recipe: Recipe, order: RunOptions, out: Path | None, reporter: ConsoleReporter) -> RunResult:
    from surgeon.client import run_job

    job = RunJob(
        recipe=recipe_to_builtins(recipe), root=str(order.root), out=str(out) if out else None,
        verify=order.verify, device=order.device, dtype=order.dtype,
    )  # fmt: skip
    result = run_job(job, reporter.on_event, order.worker)
    assert isinstance(result, RunResult)
    reporter.finish()
    return result


def _show_result(result: RunResult, as_json: bool, reporter: ConsoleReporter) -> None:
    reporter.write_line(f"{count_text(result.parameters)} parameters, {bytes_text(result.bytes)}")
    if result.proof:
        reporter.write_line(proof_table(result.proof))
    elif result.out:
        reporter.write_line(
            "not verified: whether the base is whole, and transformers loads the result as planned, is not proved"
        )
    measured = evaluations_table(result.evaluations)
    if measured and result.out:
        reporter.write_line(measured)
    if result.searches:
        reporter.write_line(searches_table(result.searches))
    if as_json:
        plain = msgspec.structs.asdict(result)
        print_json({name: value for name, value in plain.items() if name != "searches" or value})
    else:
        click.echo(result.out or measured)
    refuse_failed(result.proof or {}, str(result.out))


def evaluations_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Align what evaluations and gates found; empty where there were none."""
    rows = [
        [str(one["step"]), one["name"], one.get("data") or "built-in text", figure, value_text(found["value"]),
         value_text(found.get("error")), one.get("bounds", {}).get(figure, "")]
        for one in results for figure, found in one["figures"].items()
    ]  # fmt: skip
    header = ["step", "what", "data", "figure", "value", "error", "required"]
    width = len(header) - (not any(row[-1] for row in rows))
    machines = dict.fromkeys(one["measured_on"] for one in results if one.get("measured_on"))
    lines = [table(header[:width], [row[:width] for row in rows], right="step value error")] if rows else []
    return "\n".join([*lines, *(f"speed on {machine}" for machine in machines)])


def searches_table(searches: Sequence[Mapping[str, Any]]) -> str:
    """Align what searches have tried; the Pareto front of loss against parameters is marked."""
    rows = [
        [str(search["step"]), spans(one["layers"]), one["found_by"], count_text(one["parameters"]),
         value_text(one["rise"]["value"]), value_text(one["rise"].get("error")), "front" if one.get("front") else "",
         "kept" if one.get("kept") else ""]
        for search in searches for one in search["candidates"]
    ]  # fmt: skip
    header = ["step", "without", "found by", "parameters", "rise of loss", "error", "", ""]
    cost = (
        f"steps[{one['step']}]: {one['measured']} sets of layers measured, as much as {one['forwards']:.0f} forwards"
        for one in searches
    )
    return "\n".join([table(header, rows, right="step parameters error"), *cost])


def show_dry_run(folded: Folded, as_json: bool) -> None:
    """Print what a run would do."""
    dry_run = folded.dry_run
    if as_json:
        print_json(dry_run)
        return
    base = folded.drafts[0].structure.checkpoint
    click.echo(f"{dry_run.model}: {count_text(base.parameters)} parameters, {bytes_text(base.nbytes)}\n")
    for note in dry_run.notes:
        click.echo(f"note: {note}\n")
    click.echo(_steps_table(dry_run.steps))
    for report in dry_run.steps:
        if report.stale:
            click.echo(f"{report.stale}; that is dropped")
        for one in report.measure:
            data = f" on {one['data']}" if one["data"] else ""
            click.echo(f"steps[{report.number}] has to be measured first: {one['score']}{data}")
        if report.learn is not None:
            click.echo(_learn_text(report.number, report.learn))
    click.echo(_config_text(dry_run))
    click.echo(_result_text(dry_run))


def _learn_text(number: int, learn: Mapping[str, int]) -> str:
    return (
        f"steps[{number}] has to be learned, unless its result is kept already: it trains "
        f"{count_text(learn['parameters'])} numbers and takes {bytes_text(learn['bytes'])} of memory"
    )


def _steps_table(reports: tuple[StepReport, ...]) -> str:
    header = ["step", "operation", "layers", "parameters", "bytes", "what"]
    return table(header, list(map(_step_row, reports)), right="step parameters bytes")


def _step_row(report: StepReport) -> list[str]:
    about = "" if report.exact else "~"
    moved = report.layers_before != report.layers_after
    return [
        str(report.number),
        _step_text(report.step),
        f"{report.layers_before} → {report.layers_after}" if moved else str(report.layers_after),
        about + change_text(report.parameters_change, count_text),
        about + change_text(report.bytes_change, bytes_text),
        report.changes,
    ]


def _step_text(step: dict[str, Any]) -> str:
    name = next(key for key in step if key not in RESOLVED_KEYS)
    fields = "  ".join(f"{key}={_bare(value)}" for key, value in step[name].items())
    resolved = "".join(f"  [{key}: {_bare(value)}]" for key, value in step.get("resolved", {}).items())
    return f"{name} {fields}{resolved}"


def _bare(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join(map(_bare, value))
    return msgspec.json.encode(value).decode().replace('"', "")


def _config_text(dry_run: DryRun) -> str:
    if not dry_run.config:
        return "\nconfig.json stays as it is"
    rows = [[key, setting_text(old), "→", setting_text(new)] for key, (old, new) in dry_run.config.items()]
    return "\n" + table(["config.json", "", "", ""], rows)


def _result_text(dry_run: DryRun) -> str:
    cache = dry_run.kv_cache_bytes_per_token
    cache_text = "unknown" if cache is None else f"{bytes_text(cache)} per token"
    parts = [
        f"{dry_run.layers} layers", f"{dry_run.tensors} tensors", f"{count_text(dry_run.parameters)} parameters",
        f"{bytes_text(dry_run.bytes)}", f"KV cache {cache_text}",
    ]  # fmt: skip
    if dry_run.trainable_parameters != dry_run.parameters:
        parts.append(f"{count_text(dry_run.trainable_parameters)} trainable")
    if dry_run.adapters:
        parts.append(f"{dry_run.adapters} adapters")
    lines = ["", "result: " + ", ".join(parts), f"what is written: {dry_run.writes}"]
    if not dry_run.exact:
        lines.append("~ assumes an outcome of the measurements: figures may differ where layers are unlike")
    if dry_run.unknown:
        lines.append(dry_run.unknown)
    return "\n".join(lines)
