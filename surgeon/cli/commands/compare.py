"""`surgeon compare`: how far measured scores agree, beside what chance gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from surgeon.cli.formatting import print_json, table
from surgeon.cli.options import SurgeonCommand, as_json
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.core.scoring.ranking_agreement import overlap, spearman
from surgeon.core.scoring.score import Score
from surgeon.errors import DataError, UsageError

Ranking = Mapping[str, float]


@click.command("compare", cls=SurgeonCommand)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--top", metavar="A,B", default="30,75", show_default=True, help="Shares of the most important ones, in percent."
)
@as_json
@click.pass_obj
def command(reporter: ConsoleReporter, /, files: tuple[Path, ...], top: str, as_json: bool) -> None:
    """Compare rankings in FILES that `surgeon score --json` wrote, each with each.

    Of every score that two files share: the rank correlation, and the Jaccard overlap of the most important matrices
    (layers, where a score has no matrices) beside the overlap that two random choices of as many would have. Where two
    files hold one score each, these are compared whatever they are called.
    """
    if len(files) < 2:
        raise UsageError("one file has nothing to be compared with", where="FILES", allowed="two files or more")
    shares = _shares(top)
    measured = {path: _scores(path) for path in files}
    rows = [
        {"left": str(left), "right": str(right), **row}
        for left, right in itertools.combinations(files, 2)
        for row in _compared(measured[left], measured[right], shares, f"{left}, {right}")
    ]
    if as_json:
        print_json(rows)
    else:
        click.echo(_table(rows, shares))
    for doubt in dict.fromkeys(doubt for row in rows for doubt in _data_warnings(row)):
        reporter.write_line(doubt)


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) / 100 for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{text!r} is no list of percentages", where="--top", allowed="30,75") from error
    if not all(0 < share <= 1 for share in shares):
        raise UsageError(f"{text!r} is out of range", where="--top", allowed="more than 0, at most 100")
    return shares


def _scores(path: Path) -> list[Score]:
    try:
        plain = msgspec.json.decode(path.read_bytes())
        return msgspec.convert(plain["scores"], list[Score])
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise DataError(
            "holds no scores", where=str(path), hint="write it with `surgeon score MODEL --by SCORE --json`"
        ) from error


def _compared(left: list[Score], right: list[Score], shares: Sequence[float], where: str) -> list[dict[str, Any]]:
    others = {score.name: score for score in right}
    pairs = [(score, others[score.name]) for score in left if score.name in others]
    if len(left) == len(right) == 1:
        pairs = [(left[0], right[0])]
    if not pairs:
        raise UsageError("have no score in common", where=where, allowed=", ".join(others))
    return [_row(one, other, shares) for one, other in pairs]


def _row(left: Score, right: Score, shares: Sequence[float]) -> dict[str, Any]:
    name = left.name if left.name == right.name else f"{left.name}, {right.name}"
    fine = bool(left.matrices and right.matrices)
    one, other = _ranking(left, fine=fine), _ranking(right, fine=fine)
    found, things = [overlap(one, other, share) for share in shares], "matrices" if fine else "layers"
    if none := next((each for each in found if not each.chosen), None):
        what = f"the top {none.share * 100:g}% of {none.count} {things} is none of them"
        raise UsageError(what, where="--top", allowed=f"at least {100 / none.count:.3g}")
    return {
        "score": name, "of": things, "count": len(one), "spearman": spearman(one, other),
        "not_trained": [len(left.untrained), len(right.untrained)],
        "overlaps": [
            {"share": each.share, "chosen": each.chosen, "jaccard": each.jaccard, "chance": each.chance,
             "approximate_chance": each.approximation, "undecided": each.undecided} for each in found
        ],
    }  # fmt: skip


def _ranking(score: Score, *, fine: bool) -> Ranking:
    if not fine:
        return score.values
    return {f"{key}.{name}": value for key, row in score.matrices.items() for name, value in row.items()}


def _data_warnings(row: Mapping[str, Any]) -> Iterator[str]:
    """Say where a place in a ranking was not earned."""
    for at, side in enumerate(("left", "right")):
        if untrained := row["not_trained"][at]:
            yield f"{row[side]}: {untrained} matrices were not trained; they rank lowest, by lot"
        for each in row["overlaps"]:
            if tied := each["undecided"][at]:
                what = f"top {each['share'] * 100:g}% of {row['score']} cuts through {tied} equal {row['of']}"
                yield f"{row[side]}: the {what}, which their order decides"


def _table(rows: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> str:
    tops = [column for share in shares for column in (f"top {share * 100:g}%", "chance")]
    header = ["left", "right", "score", "of", "spearman", *tops]
    cells = [
        [
            row["left"], row["right"], row["score"], f"{row['count']} {row['of']}", f"{row['spearman']:+.3f}",
            *(f"{each[kind]:.3f}" for each in row["overlaps"] for kind in ("jaccard", "chance")),
        ]
        for row in rows
    ]  # fmt: skip
    return table(header, cells)
