from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from surgeon.cli.commands.score import ranks
from surgeon.cli.heat_map import heat_map
from surgeon.core.scoring.score import Provenance, Score
from surgeon.errors import DataError
from tests.cli.conftest import Jobs, Run
from tests.jobs import event_of


def plain(name: str, values: list[float], keys: list[str] | None = None, errors: bool = False) -> dict[str, Any]:
    keyed = dict(zip(keys or map(str, range(len(values))), values, strict=True))
    spread = dict.fromkeys(keyed, 0.25) if errors else {}
    return {"name": name, "values": keyed, "errors": spread, "provenance": {"fingerprint": "ff"}}


@pytest.fixture
def scored(jobs: Jobs) -> Jobs:
    influence = plain("block_influence", [0.5, 0.1, 0.4, 0.3, 0.2, 0.9], errors=True)
    jobs.answer = {"scores": [influence, plain("weight_norm", [6, 5, 4, 3, 2, 1])]}
    body = {"score": "block_influence", "layer": "0", "value": 0.5, "error": 0.25, "matrices": None}
    jobs.events = [event_of("scored", **body)]
    return jobs


def test_the_table_is_in_layer_order_with_errors_and_ranks(run: Run, model: str, scored: Jobs) -> None:
    result = run("score", model, "--by", "block_influence,weight_norm")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["layer", "block_influence", "rank", "weight_norm", "rank"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2", "3", "4", "5"]
    assert rows[2] == ["1", "0.1000", "±", "0.25", "1", "5.000", "5"]
    assert rows[6][4] == "6"


def test_rows_are_told_as_they_arrive(run: Run, model: str, scored: Jobs) -> None:
    words = ["score", model, "--by", "block_influence"]
    assert "block_influence  layer 0  0.5000 ± 0.2500" in run(*words).stderr
    assert run(*words, "-q").stderr == ""


def test_the_job_is_asked_for_what_the_options_say(run: Run, model: str, scored: Jobs, tmp_path: Path) -> None:
    data = tmp_path / "d.txt"
    data.write_text("text")
    words = [
        "--by",
        "weight_norm",
        "--by",
        "block-influence,weight_norm",
        "--data",
        data,
        "--sequences",
        3,
        "--length",
        9,
    ]
    assert run("score", model, *words, "--seed", 4, "--device", "cpu", "--worker", "far").exit_code == 0
    ((job, args, worker),) = scored.asked
    assert (job, worker) == ("score", "far")
    assert args["names"] == ["weight_norm", "block_influence"]
    assert (args["data"], args["sequences"], args["length"], args["seed"]) == (str(data), 3, 9, 4)
    assert (args["device"], args["dtype"], args["root"]) == ("cpu", None, str(Path.cwd()))
    assert args["recipe"] == {"version": 1, "base": {"model": model}, "seed": 0, "steps": []}


def test_a_model_is_scored_after_the_steps_of_a_recipe(run: Run, model: str, recipe: Path, jobs: Jobs) -> None:
    recipe.write_text(recipe.read_text().replace("steps:", "data: {docs: some/docs.txt}\nsteps:"))
    jobs.answer = {"scores": [plain("weight_norm", [3, 4, 1, 2], ["0", "3", "4", "5"])]}
    result = run("score", model, "--by", "weight_norm", "--recipe", recipe, "--data", "docs")
    assert result.exit_code == 0, result.stderr
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[1:]] == [
        "0",
        "1 (base 3)",
        "2 (base 4)",
        "3 (base 5)",
    ]
    args = jobs.asked[0][1]
    assert len(args["recipe"]["steps"]) == 2
    assert (args["root"], args["data"]) == (str(recipe.parent), "some/docs.txt")


def test_csv_and_json_hold_every_number(run: Run, model: str, scored: Jobs, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    result = run("score", model, "--by", "block_influence,weight_norm", "--csv", path, "--json")
    report = json.loads(result.stdout)
    assert report["layers"] == ["0", "1", "2", "3", "4", "5"]
    assert report["scores"][0]["values"]["1"] == 0.1
    assert report["ranks"]["weight_norm"]["5"] == 1
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[1] == {
        "position": "1", "layer": "1", "matrix": "", "score": "block_influence", "value": "0.1", "error": "0.25",
        "rank": "1",
    }  # fmt: skip


def test_csv_has_a_row_for_each_matrix_too(run: Run, model: str, jobs: Jobs, tmp_path: Path) -> None:
    norms = plain("weight_norm", [6, 5, 4, 3, 2, 1]) | {"matrices": {"2": {"mlp.up_proj.weight": 3.5}}}
    jobs.answer = {"scores": [norms]}
    run("score", model, "--by", "weight_norm", "--csv", tmp_path / "s.csv")
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert rows[3] == {
        "position": "2", "layer": "2", "matrix": "mlp.up_proj.weight", "score": "weight_norm", "value": "3.5",
        "error": "", "rank": "",
    }  # fmt: skip


def test_settings_of_scores_and_all_of_them_reach_the_job(run: Run, model: str, scored: Jobs) -> None:
    for by, names in {
        "block_removal(longest=4),removal": ["block_removal(longest=4)", "removal"],
        "semantic-gain, lamp(kept=0.5)": ["semantic_gain", "lamp"],
        "all": ["all"],
        "all,block_removal(longest=2)": ["all", "block_removal(longest=2)"],
    }.items():
        assert run("score", model, "--by", by, "--no-stream").exit_code == 0
        args = scored.asked[-1][1]
        assert (args["names"], args["stream"]) == (names, False)
    assert run("score", model, "--by", "removal(longest=4)").exit_code == 2


def test_layers_of_a_model_elsewhere_are_put_in_order(run: Run, jobs: Jobs) -> None:
    jobs.answer = {"scores": [plain("weight_norm", [1, 2, 3, 4], ["10", "2+1", "2", "0"])]}
    result = run("score", "/far/away", "--by", "weight_norm", "--worker", "ssh box surgeon worker", "--json")
    assert json.loads(result.stdout)["layers"] == ["0", "2", "2+1", "10"]


def test_layers_without_a_finite_value_have_no_rank() -> None:
    score = Score(name="s", values={"0": math.nan, "1": 2.0, "2": 1.0}, provenance=Provenance(fingerprint=""))
    assert ranks(score, ["0", "1", "2", "3"]) == {"2": 1, "1": 2}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "block_influnce"], "there is no score 'block_influnce'; did you mean 'block_influence'?"),
        (["--by", ","], "names no score"),
        ([], "missing option '--by'"),
        (["--by", "weight_norm", "--sequences", "0"], "'--sequences': 0 is not in the range"),
        (["--by", "weight_norm", "--recipe", "nix.yaml"], "nix.yaml: cannot be read"),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, model: str, jobs: Jobs, words: list[str], said: str) -> None:
    result = run("score", model, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not jobs.asked


def test_a_failure_of_the_job_is_told_in_its_own_words(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = DataError("holds 3 tokens", where="d.txt", allowed="at least 4")
    result = run("score", model, "--by", "weight_norm")
    assert result.exit_code == 1
    assert result.stderr == "surgeon: d.txt: holds 3 tokens\n  allowed: at least 4\n"


def test_csv_that_cannot_be_written_is_an_error_in_words(run: Run, model: str, scored: Jobs, tmp_path: Path) -> None:
    result = run("score", model, "--by", "weight_norm", "--csv", tmp_path / "no" / "s.csv")
    assert result.exit_code == 1
    assert "s.csv: cannot be written: No such file" in result.stderr


def test_a_score_of_weights_is_really_measured(run: Run, model: str) -> None:
    result = run("score", model, "--by", "weight_norm", "--json")
    assert result.exit_code == 0, result.stderr
    score = json.loads(result.stdout)["scores"][0]
    assert list(score["values"]) == ["0", "1", "2", "3", "4", "5"]
    assert all(value > 0 for value in score["values"].values())


MATRICES = {
    "0": {"self_attn.q_proj.weight": 4.0, "mlp.up_proj.weight": 3.0},
    "1": {"self_attn.q_proj.weight": 1.0, "mlp.up_proj.weight": 2.0},
}


def learned(**more: Any) -> dict[str, Any]:
    return plain("ila", [3.5, 1.5]) | {"matrices": MATRICES} | more


def test_matrices_are_shown_by_layer_and_role_and_shaded_by_rank(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = {"scores": [learned(details={"not_trained": ["model.layers/1/self_attn.q_proj"]})]}
    shown = run("score", model, "--by", "ila").stdout.split("\n\n")[1].splitlines()
    assert shown[0] == "ila of each matrix; darker is more important, · was not trained"
    assert shown[1].split() == ["layer", "attention.query", "mlp.up"]
    assert shown[2].split() == ["0", "▓", "4.000", "░", "3.000"]
    assert shown[3].split() == ["1", "·", "2.000"]
    assert "of each matrix" not in run("score", model, "--by", "ila", "--no-matrices").stdout


def test_what_was_not_trained_has_no_part_in_a_mean() -> None:
    """Of two matrices in a cell the trained one is shown; only a cell without any is marked."""
    matrices = {"q_a.weight": 4.0, "q_b.weight": 2.0, "up.weight": 1.0}
    score = Score(
        name="ila", values={"0": 2.3}, matrices={"0": matrices}, provenance=Provenance(fingerprint="ff"),
        details={"not_trained": ["layers/0/q_b", "layers/0/up"]},
    )  # fmt: skip
    lines = heat_map(score, ["0"], lambda name: "query" if name.startswith("q") else "up").splitlines()
    assert [line.split() for line in lines[1:]] == [["layer", "query", "up"], ["0", "4.000", "·"]]


def test_maps_of_several_scores_are_shown_when_asked_for(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = {"scores": [learned(), learned() | {"name": "taylor"}, plain("removal", [1, 2])]}
    words = ["score", model, "--by", "ila,taylor,removal"]
    assert "of each matrix" not in run(*words).stdout
    assert run(*words, "--matrices").stdout.count("of each matrix; darker is more important\n") == 2


def test_experts_are_averaged_and_parts_of_fused_matrices_stand_apart(run: Run, jobs: Jobs) -> None:
    names = {"mlp.experts.gate_up_proj[0]": 1.0, "mlp.experts.gate_up_proj[1]": 2.0, "qkv.weight[attention.key]": 5.0}
    jobs.answer = {"scores": [plain("lamp", [1]) | {"matrices": {"0": names}}]}
    result = run("score", "/far/away", "--by", "lamp", "--worker", "ssh box surgeon worker")
    lines = result.stdout.split("\n\n")[1].splitlines()
    assert lines[1].split() == ["layer", "mlp.experts.gate_up_proj", "qkv[attention.key]"]
    assert [word for word in lines[2].split() if word[0].isdigit()] == ["0", "1.500", "5.000"]


def test_what_takes_long_is_told_before_it_begins(run: Run, model: str, scored: Jobs) -> None:
    result = run("score", model, "--by", "block_removal", "--sequences", 2, "--length", 8)
    assert result.stderr.startswith("to measure: as much as ")
    assert "forwards of 16 tokens (block_removal " in result.stderr.splitlines()[0]
    assert not run("score", model, "--by", "block_influence").stderr.startswith("to measure")
