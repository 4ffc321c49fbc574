"""`surgeon score`: measures how important each layer is."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import msgspec

from surgeon.cli.command import SurgeonCommand, as_json, computing
from surgeon.cli.figures import print_json, table, value_text
from surgeon.cli.narration import Narrator
from surgeon.cli.rehearsal import fold_recipe
from surgeon.core.recipe import Base, Recipe, load_recipe, recipe_to_builtins
from surgeon.core.score import Score, score_kinds
from surgeon.errors import SurgeonError, UsageError

_KEY = re.compile(r"\d+(\+\d+)*")


@click.command("score", cls=SurgeonCommand)
@click.argument("model")
@click.option("--by", metavar="A,B", multiple=True, required=True, help="Scores; `surgeon list scores` shows them.")
@click.option("--data", metavar="FILE", help="Text to measure on; Python's own documentation where none is given.")
@click.option("--sequences", type=click.IntRange(1), default=12, show_default=True, help="How many pieces of text.")
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in each piece.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the pieces.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE", help="Score the model after these steps.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers there too.")
@computing
@as_json
@click.pass_obj
def command(
    narrator: Narrator, /, model: str, by: tuple[str, ...], data: str | None, recipe: Path | None,
    csv_path: Path | None, worker: str | None, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Measure how important each layer of MODEL is. Rows appear on stderr as they are known, the table on stdout.

    Higher is more important; rank 1 is the least important layer.
    """
    from surgeon.client import run_job

    names = _names(by)
    patient = Recipe(base=Base(model=model))
    if recipe is not None:
        loaded = load_recipe(recipe)
        patient = msgspec.structs.replace(loaded, base=msgspec.structs.replace(loaded.base, model=model))
    keys = _layer_keys(patient, recipe, worker)
    root = recipe.absolute().parent if recipe is not None else Path.cwd()
    asked = {"names": names, "data": _data(data, patient), **settings}
    args = {"recipe": recipe_to_builtins(patient), "root": str(root), **asked}
    result = run_job("score", args, narrator.hear, worker)
    narrator.finish()
    scores = [msgspec.convert(plain, Score) for plain in result["scores"]]
    _tell(scores, keys or _sorted_keys(scores), csv_path, as_json)


def _data(data: str | None, patient: Recipe) -> str | None:
    """Return where the text is: a name from the recipe, a file here, or whatever the worker makes of it."""
    if data in patient.data:
        return patient.data[data]
    return str(Path(data).absolute()) if data and Path(data).exists() else data


def _names(by: Sequence[str]) -> list[str]:
    known = sorted(score_kinds())
    names = list(
        dict.fromkeys(name.strip().replace("-", "_") for part in by for name in part.split(",") if name.strip())
    )
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            did = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"there is no score {name!r}{did}", where="--by", allowed=", ".join(known))
    if not names:
        raise UsageError("names no score", where="--by", allowed=", ".join(known))
    return names


def _layer_keys(patient: Recipe, where: Path | None, worker: str | None) -> list[str]:
    """Return the keys in the order of the layers, where the model can be looked at from here."""
    if worker is not None and not Path(patient.base.model).expanduser().is_dir():
        return []
    folded = fold_recipe(patient, where)
    return [layer.key for layer in folded.drafts[-1].layers()] if all(one.exact for one in folded.reports) else []


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
    return [
        {
            "position": position, "layer": key, "score": score.name, "value": score.values.get(key),
            "error": score.errors.get(key), "rank": places.get(key),
        }
        for position, key in enumerate(keys)
    ]  # fmt: skip


def _write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["position", "layer", "score", "value", "error", "rank"])
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
    header = ["layer", *(name for score in scores for name in (score.name, "rank"))]
    return table(header, rows, right="rank")
