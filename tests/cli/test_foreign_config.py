"""import-config, export-config, and run on a file of another tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgeon.core.recipe.recipe import load_recipe
from surgeon.core.recipe.yaml_document import parse_value
from tests.cli.conftest import Run, fresh

SPECTRUM = "unfrozen_parameters:\n- ^lm_head.weight$\n- model.layers.[14].\n"


def merge_file(model: str, path: Path) -> Path:
    spans = [[0, 2], [1, 3], [4, 6]]
    slices = [{"sources": [{"model": model, "layer_range": span}]} for span in spans]
    path.write_text(json.dumps({"merge_method": "passthrough", "slices": slices, "dtype": "float32"}))
    return path


def test_run_carries_out_a_merge_config(model: str, tmp_path: Path) -> None:
    done = fresh("run", merge_file(model, tmp_path / "merge.yaml"), "--out", tmp_path / "out", "--no-verify")
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert [step.operation.name for step in recipe.steps] == ["prune", "expand", "reorder"][: len(recipe.steps)]
    assert recipe.base.fingerprint
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 6


def test_run_of_another_tool_s_file_says_what_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "spectrum.yaml").write_text(SPECTRUM)
    result = run("run", tmp_path / "spectrum.yaml", "--dry-run")
    assert "surgeon import-config" in result.stderr


def test_import_writes_a_recipe_that_runs_and_export_writes_it_back(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "spectrum.yaml").write_text(SPECTRUM)
    recipe = tmp_path / "recipe.yaml"
    result = run("import-config", tmp_path / "spectrum.yaml", "--model", model, "--out", recipe)
    assert result.exit_code == 0, result.stderr
    assert "fits no parameter of this model: ^lm_head.weight$" in result.stderr
    assert run("run", recipe, "--dry-run").exit_code == 0
    text = run("export-config", "axolotl", recipe).stdout
    assert parse_value(text) == {
        "base_model": model, "unfrozen_parameters": ["^model.layers.1.", "^model.layers.4."]
    }  # fmt: skip


def test_a_relative_model_is_named_as_seen_from_the_recipe(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own").symlink_to(model)
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    merge_file("./models/own", tmp_path / "merge.yaml")
    assert run("import-config", "merge.yaml", "--out", "recipes/own.yaml").exit_code == 0
    assert load_recipe(tmp_path / "recipes" / "own.yaml").base.model == "../models/own"
    assert run("run", "recipes/own.yaml", "--dry-run").exit_code == 0


def test_what_is_no_config_and_no_format_is_named(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("a: 1\n")
    assert "no config file that is known" in run("import-config", tmp_path / "other.yaml").stderr
    assert "mergekit" in run("import-config", tmp_path / "other.yaml", "--format", "x").stderr
    assert "mergekit" in run("export-config", "x", tmp_path / "other.yaml").stderr
    assert "there is no recipe" in run("export-config", "peft", model).stderr
    (tmp_path / "spectrum.yaml").write_text(SPECTRUM)
    assert "--model" in run("import-config", tmp_path / "spectrum.yaml").stderr
    assert "is no recipe" in run("export-config", "peft", tmp_path / "spectrum.yaml").stderr


def test_a_selection_that_was_not_measured_is_not_exported(run: Run, model: str, tmp_path: Path) -> None:
    steps = [{"prune": {"layers": "lowest 2 by weight_norm"}}]
    recipe = {"version": 1, "base": {"model": model}, "steps": steps}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert "not measured" in run("export-config", "mergekit", tmp_path / "recipe.yaml").stderr
