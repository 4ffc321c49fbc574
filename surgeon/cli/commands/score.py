"""`surgeon score`: measures how important each layer is."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from surgeon.cli.dry_run import fold_recipe
from surgeon.cli.formatting import print_json, table, value_text
from surgeon.cli.heat_map import heat_map
from surgeon.cli.options import SurgeonCommand, as_json, computing
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.cli.scoring_options import base_recipe, job_fields, measuring
from surgeon.core.checkpoint.base_path import model_name
from surgeon.core.jobs import ScoreJob, ScoreResult
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.scoring.costs import cost_text
from surgeon.core.scoring.requests import request_of, requested_scores, split_requests
from surgeon.core.scoring.score import Score
from surgeon.core.structure.structure import OTHER
from surgeon.errors import SurgeonError

_KEY = re.compile(r"\d+(\+\d+)*")


@click.command("score", cls=SurgeonCommand)
@click.argument("model")
@click.option(
    "--by",
    metavar="A,B",
    multiple=True,
    required=True,
    help="Scores; `surgeon list scores` shows them. `block_removal(longest=4)` changes a setting, `all` means each.",
)
@measuring
@click.option(
    "--csv",
    "csv_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the numbers there too: a row for each layer, and one for each matrix where a score has them.",
)
@click.option(
    "--matrices/--no-matrices",
    default=None,
    help="Show every matrix too, where a score has them: layers x roles; by default where one score is asked for.",
)
@computing
@as_json
@click.pass_obj
def command(
    reporter: ConsoleReporter, /, model: str, by: tuple[str, ...], data: str | None, recipe: Path | None,
    csv_path: Path | None, matrices: bool | None, worker: str | None, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Measure how important each layer of MODEL is. Rows appear on stderr as they are known, the table on stdout.

    Higher is more important; rank 1 is the least important layer.
    """
    from surgeon.client import run_job

    names = _names(by)
    measured = base_recipe(model, recipe, trust=settings.pop("trust_remote_code"))
    draft = _draft(measured, recipe, worker)
    tokens = settings["sequences"] * settings["length"]
    if draft is not None and (cost := cost_text(requested_scores(names), draft, tokens)):
        reporter.write_line(cost)
    job = ScoreJob(names=tuple(names), **job_fields(measured, recipe, data, settings))
    result = run_job(job, reporter.on_event, worker)
    assert isinstance(result, ScoreResult)
    reporter.finish()
    scores = [msgspec.convert(plain, Score) for plain in result.scores]
    keys = [layer.key for layer in draft.layers()] if draft is not None else _sorted_keys(scores)
    _tell(scores, keys, csv_path, as_json)
    if not as_json and (matrices if matrices is not None else len(scores) == 1):
        for score in scores:
            if score.matrices:
                click.echo("\n" + heat_map(score, keys, _roles(draft)))


def _names(by: Sequence[str]) -> list[str]:
    """Return what was asked for, checked here: a mistake is told before torch is loaded."""
    asked = [request for part in by for request in split_requests(part)]
    kinds = requested_scores(asked)
    # `all` goes to the worker as it is: it may leave out what the model cannot have.
    return (["all"] if "all" in asked else []) + [
        request_of(kind) for kind in kinds if "all" not in asked or "(" in request_of(kind)
    ]


def _draft(measured: Recipe, where: Path | None, worker: str | None) -> Draft | None:
    """Return the model that is measured, where it can be looked at from here."""
    root = where.absolute().parent if where is not None else Path.cwd()
    if worker is not None and not Path(model_name(measured.base.model, root)).expanduser().is_dir():
        return None
    folded = fold_recipe(measured, where)
    return folded.drafts[-1] if all(one.exact for one in folded.reports) else None


def _roles(draft: Draft | None) -> Callable[[str], str] | None:
    """Return what says a matrix's role, a fused one's part by its own; None where the model is elsewhere."""
    if draft is None:
        return None
    structure = draft.structure

    def role_of(name: str) -> str:
        stem, _, part = name.removesuffix("]").partition("[")
        role = structure.role(stem)
        return part if part and not part.isdigit() else stem.removesuffix(".weight") if role == OTHER else role

    return role_of


def _sorted_keys(scores: Sequence[Score]) -> list[str]:
    keys = dict.fromkeys(key for score in scores for key in score.values)
    return sorted(keys, key=lambda key: [int(part) for part in key.split("+")] if _KEY.fullmatch(key) else [math.inf])


def ranks(score: Score, keys: Sequence[str]) -> dict[str, int]:
    """Return each layer's place, 1 for the least important; layers without a finite value have none."""
    finite = [key for key in keys if math.isfinite(score.values.get(key, math.nan))]
    return {key: place for place, key in enumerate(score.ranking(finite), start=1)}


def _tell(scores: Sequence[Score], keys: Sequence[str], csv_path: Path | None, as_json: bool) -> None:
    rows = [row for score in scores for row in _rows(score, keys)]
    if csv_path is not None:
        _write_csv(rows, csv_path)
    if as_json:
        places = [ranks(score, keys) for score in scores]
        print_json(
            {"layers": list(keys), "scores": scores, "ranks": dict(zip((s.name for s in scores), places, strict=True))}
        )
    else:
        click.echo(_table(scores, keys))


def _rows(score: Score, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    places = ranks(score, keys)
    rows: list[Mapping[str, Any]] = []
    for position, key in enumerate(keys):
        spot = {"position": position, "layer": key, "matrix": None, "score": score.name}
        value, error = score.values.get(key), score.errors.get(key)
        rows.append({**spot, "value": value, "error": error, "rank": places.get(key)})
        rows += [{**spot, "matrix": name, "value": one} for name, one in score.matrices.get(key, {}).items()]
    return rows


def _write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["position", "layer", "matrix", "score", "value", "error", "rank"])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise SurgeonError(f"cannot be written: {error.strerror}", where=str(path)) from error


def _table(scores: Sequence[Score], keys: Sequence[str]) -> str:
    places = [ranks(score, keys) for score in scores]
    rows = []
    for position, key in enumerate(keys):
        name = str(position) if key == str(position) else f"{position} (base {key})"
        row = [name]
        for score, place in zip(scores, places, strict=True):
            error = score.errors.get(key)
            spread = f" ± {error:.2g}" if error is not None else ""
            row += [value_text(score.values.get(key)) + spread, str(place.get(key, "–"))]
        rows.append(row)
    header = ["layer", *(name for score in scores for name in (_heading(score), "rank"))]
    return table(header, rows, right="rank")


def _heading(score: Score) -> str:
    return f"{score.name}, weights only" if score.weights_only else score.name
