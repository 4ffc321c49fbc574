"""Evaluations and gates on the command line: tables, JSON, and exit code 3."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from surgeon.core.recipe.command_text import command_line
from surgeon.core.recipe.recipe import step_of, step_to_builtins
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.cli.conftest import Jobs, Run, fresh

_GATE = """version: 1
base: {{model: {base}}}
data: {{docs: docs.jsonl}}
steps:
  - prune: {{layers: 1-3}}
  - evaluate: {{metric: bits_per_byte, data: docs, name: pruned}}
  - require: {{perplexity: {{data: docs, at_most: {bound}}}}}
"""

_MISSING = """version: 1
base: {{model: {base}}}
data: {{docs: docs.jsonl}}
steps:
  - train: {{objective: lm, data: docs, steps: 1, max_length: 16}}
  - evaluate: {{metric: perplexity, data: nix.jsonl}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluate")
    write_tokenizer(save_tiny("llama", directory / "base"))
    (directory / "docs.jsonl").write_text('{"text": "It was a bright cold day in April."}\n' * 3)
    return directory


def test_a_model_is_measured_without_writing_anything(place: Path, tmp_path: Path) -> None:
    """The table is the output; nothing appears where it was called."""
    found = fresh("evaluate", place / "base", "--data", place / "docs.jsonl", "--rows", 2, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert lines[0] == ["step", "what", "data", "figure", "value", "error"]
    assert [line[3] for line in lines[1:]] == ["nll", "perplexity", "bits_per_byte"]
    assert "perplexity on" in found.stderr
    assert not list(tmp_path.iterdir())


def test_figures_are_json_too(place: Path) -> None:
    """With everything in them that the export would hold."""
    words = ("--metric", "bits_per_byte", "--name", "mine", "--data", place / "docs.jsonl", "--json", "-q")
    found = fresh("evaluate", place / "base", *words)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    (one,) = result["evaluations"]
    assert (one["step"], one["name"], one["metric"]) == (0, "mine", "bits_per_byte")
    assert one["figures"]["bits_per_byte"]["value"] > 0
    assert result["out"] is None


def test_a_gate_that_is_not_met_ends_with_exit_code_3(place: Path, tmp_path: Path) -> None:
    """The step, the figure and the bound are named, what was measured before was told, and nothing is written."""
    (place / "gate.yaml").write_text(_GATE.format(base=place / "base", bound="1.0001x"))
    found = fresh("run", place / "gate.yaml", "--out", tmp_path / "out")
    assert found.returncode == 3
    assert "steps[1]  pruned on docs: nll" in found.stderr
    assert "steps[2].require.perplexity: perplexity is" in found.stderr
    assert "allowed: at most 1.0001x" in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_gate_that_is_met_is_in_the_table(place: Path, tmp_path: Path) -> None:
    """On stderr, so that the output is the directory alone."""
    (place / "gate.yaml").write_text(_GATE.format(base=place / "base", bound=1000))
    found = fresh("run", place / "gate.yaml", "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(tmp_path / "out")
    assert "at most 1000" in found.stderr
    assert len(json.loads((tmp_path / "out" / "surgeon_results.json").read_text())["evaluations"]) == 2


def test_a_recipe_that_changes_the_model_still_needs_a_place(place: Path, run: Run, jobs: Jobs) -> None:
    """It is told before a worker is asked."""
    (place / "gate.yaml").write_text(_GATE.format(base=place / "base", bound=1000))
    found = run("run", place / "gate.yaml")
    assert found.exit_code != 0
    assert "--out" in found.stderr
    assert not jobs.asked


@pytest.mark.parametrize(
    ("bound", "said"),
    [("much", "at_most"), ("1.05y", "at_most"), ("-3x", "at_most"), ("[1]", "at_most"), ("2x, at_mots: 1", "at_mots")],
)
def test_a_bound_that_is_none_is_refused_when_the_recipe_is_read(
    place: Path, run: Run, jobs: Jobs, bound: str, said: str
) -> None:
    """With the key that is wrong."""
    (place / "gate.yaml").write_text(_GATE.format(base=place / "base", bound=bound))
    found = run("run", place / "gate.yaml", "--dry-run")
    assert found.exit_code != 0
    assert said in found.stderr
    assert not jobs.asked


def test_a_gate_reads_back_from_the_command_that_does_the_same(place: Path, run: Run) -> None:
    """Its bounds are written as JSON, which is YAML."""
    step = step_of("require", {"perplexity": {"data": "docs", "at_most": "1.05x"}}, "test")
    words = shlex.split(command_line(step, str(place / "base")))[1:]
    found = run(*words, "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["steps"][0]["step"] == step_to_builtins(step)


def test_data_that_is_not_there_is_told_before_anything_is_trained(place: Path, tmp_path: Path) -> None:
    """An evaluation at the end would find out only after hours."""
    (place / "missing.yaml").write_text(_MISSING.format(base=place / "base"))
    found = fresh("run", place / "missing.yaml", "--out", tmp_path / "out")
    assert found.returncode == 1
    assert f"steps[1].evaluate.data: names nix.jsonl, and there is no file {place / 'nix.jsonl'}" in found.stderr
    assert "a name from the recipe's data" in found.stderr
    assert "loss" not in found.stderr
    assert not list(tmp_path.iterdir())
