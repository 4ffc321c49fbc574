"""`surgeon plan`: a table, JSON, and what it says of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def _a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))


def test_scores_of_a_model_are_planned_and_the_machine_is_measured_once(run: Run, model: str, tmp_path: Path) -> None:
    """The second time no torch is needed."""
    first = run("plan", model, "--by", "block_influence,weight_norm", "--json", "--device", "cpu")
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert [work["step"] for work in report["work"]] == [
        "score: weight_norm", "score: block_influence", "export",
    ]  # fmt: skip
    assert report["fits"] is True
    assert list((tmp_path / "cache" / "machine").glob("*.json"))
    again = json.loads(run("plan", model, "--by", "block_influence,weight_norm", "--json", "--device", "cpu").stdout)
    assert again == report


def test_steps_of_a_recipe_are_planned(run: Run, model: str, tmp_path: Path) -> None:
    """What is measured for a selection, what is learned, what is evaluated, and the export."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 1\nbase: {{model: {model}}}\nsteps:\n"
        "  - prune: {layers: {lowest: 1, by: block_influence}}\n"
        "  - train: {objective: lm, steps: 2}\n"
        "  - evaluate: {metric: perplexity}\n"
    )
    planned = run("plan", recipe, "--device", "cpu")
    assert planned.exit_code == 0, planned.output
    for words in ("0: prune: block_influence", "1: train", "2: evaluate", "export", "as its data say"):
        assert words in planned.stdout
    small = run("plan", recipe, "--device", "cpu", "--memory", "1MB")
    assert "no: nothing of the step; masked_lora" in small.stdout
    assert (
        json.loads(run("plan", recipe, "--device", "cpu", "--memory", "1MiB", "--json").stdout)["memory_bytes"] == 2**20
    )


def test_an_amount_of_memory_that_is_none_is_refused(run: Run, model: str) -> None:
    """Before anything is measured."""
    refused = run("plan", model, "--memory", "24GX")
    assert refused.exit_code != 0
    assert "24GB" in refused.stderr
