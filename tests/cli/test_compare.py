from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.core.scoring.ranking_agreement import chance_jaccard
from tests.cli.conftest import Run


def write(path: Path, *scores: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"layers": [], "scores": scores, "ranks": {}}))
    return path


def score(values: list[float], name: str = "ila", matrices: bool = True) -> dict[str, Any]:
    rows = {str(at): {"a": value, "b": -value} for at, value in enumerate(values)} if matrices else {}
    keyed = {str(at): value for at, value in enumerate(values)}
    return {"name": name, "values": keyed, "matrices": rows, "provenance": {"fingerprint": "ff"}}


def test_rankings_of_matrices_are_compared_beside_chance(run: Run, tmp_path: Path) -> None:
    left = write(tmp_path / "a.json", score([1, 2, 3, 4, 5]))
    right = write(tmp_path / "b.json", score([5, 4, 3, 2, 1]))
    (found,) = json.loads(run("compare", left, right, "--json").stdout)
    assert (found["score"], found["of"], found["count"]) == ("ila", "matrices", 10)
    top = found["overlaps"][0]
    # {4.a, 3.a, 2.a} and {0.a, 1.a, 2.a}
    assert (top["share"], top["chosen"], top["jaccard"]) == (0.3, 3, 1 / 5)
    assert top["chance"] == chance_jaccard(3, 10)
    assert top["approximate_chance"] == pytest.approx(0.3 / 1.7)
    text = run("compare", left, left).stdout.splitlines()
    assert text[0].split() == [
        "left",
        "right",
        "score",
        "of",
        "spearman",
        "top",
        "30%",
        "chance",
        "top",
        "75%",
        "chance",
    ]
    assert text[1].split()[2:6] == ["ila", "10", "matrices", "+1.000"]


def test_places_that_were_not_earned_are_told_of(run: Run, tmp_path: Path) -> None:
    """Matrices that no training reached; and equal ones that a top share is cut through, where order decides."""
    lots = score([1, 2, 3, 4, 5]) | {"details": {"not_trained": ["layers/0/a", "layers/3/b"]}}
    left, right = write(tmp_path / "a.json", lots), write(tmp_path / "b.json", score([0, 0, 0, 0, 5]))
    (found,) = json.loads(run("compare", left, right, "--json").stdout)
    assert found["not_trained"] == [2, 0]
    # Of b: 5, then eight times 0, then -5.
    assert [each["undecided"] for each in found["overlaps"]] == [[0, 8], [0, 8]]
    assert run("compare", left, right).stderr.splitlines() == [
        f"{left}: 2 matrices were not trained; they rank lowest, by lot",
        f"{right}: the top 30% of ila cuts through 8 equal matrices, which their order decides",
        f"{right}: the top 75% of ila cuts through 8 equal matrices, which their order decides",
    ]
    sure = write(tmp_path / "c.json", score([1, 2]))
    assert not run("compare", sure, sure).stderr


def test_layers_are_compared_where_there_are_no_matrices_and_every_pair_has_a_row(run: Run, tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{at}.json", score([1, 2, 3, at], "removal", matrices=False), score([1, at, 1, 1], "other"))
        for at in range(3)
    ]
    rows = json.loads(run("compare", *files, "--top", "50", "--json").stdout)
    assert [(row["left"][-6:], row["right"][-6:], row["score"], row["of"]) for row in rows[:3]] == [
        ("0.json", "1.json", "removal", "layers"),
        ("0.json", "1.json", "other", "matrices"),
        ("0.json", "2.json", "removal", "layers"),
    ]
    assert len(rows) == 6


def test_single_scores_are_compared_whatever_they_are_called(run: Run, tmp_path: Path) -> None:
    left, right = write(tmp_path / "a.json", score([1, 2])), write(tmp_path / "b.json", score([2, 1], "taylor"))
    assert "ila, taylor" in run("compare", left, right).stdout


@pytest.mark.parametrize(
    ("right", "more", "code", "said"),
    [
        ("{}", [], 1, "holds no scores"),
        ("no json", [], 1, "holds no scores"),
        (None, [], 1, "cannot be read"),
        ("same", ["--top", "x"], 2, "no list of percentages"),
        ("same", ["--top", "120"], 2, "out of range"),
        ("same", ["--top", "50,10"], 2, "the top 10% of 4 matrices is none of them"),
        ("longer", [], 2, "they do not rank the same things: only one has 2.a"),
        ("others", [], 2, "have no score in common"),
    ],
)
def test_what_cannot_be_compared_is_said(
    run: Run, tmp_path: Path, right: str | None, more: list[str], code: int, said: str
) -> None:
    left = write(tmp_path / "a.json", score([1, 2]))
    other = tmp_path / "b.json"
    if right == "same":
        write(other, score([1, 2]))
    elif right == "longer":
        write(other, score([1, 2, 3]))
    elif right == "others":
        write(other, score([1, 2], "x"), score([1, 2], "y"))
    elif right is not None:
        other.write_text(right)
    result = run("compare", left, other, *more)
    assert result.exit_code == code
    assert said in result.stderr
    assert run("compare", left).exit_code == 2
