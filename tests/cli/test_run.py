from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.fit import Fit, keep_fit
from surgeon.core.recipe.recipe import load_recipe
from surgeon.errors import GateError, VerifyError
from tests.cli.conftest import Jobs, Run, fresh
from tests.jobs import event_of

PROOF = {"keys": {"passed": True, "detail": "none missing"}}


def test_a_dry_run_shows_steps_config_and_result(run: Run, recipe: Path) -> None:
    result = run("run", recipe, "--dry-run")
    assert result.exit_code == 0
    assert "6 → 4" in result.stdout
    assert "removed 2" in result.stdout
    assert "froze 9 tensors" in result.stdout
    assert "num_hidden_layers  6  →  4" in result.stdout
    assert "4 layers, 38 tensors" in result.stdout


def test_a_dry_run_says_what_is_known_to_be_wrong_with_the_base(run: Run, recipe: Path) -> None:
    """A run would refuse it."""
    checkpoint = open_checkpoint(Path(load_recipe(recipe).base.model))
    keep_fit(checkpoint, Fit(class_name="LlamaForCausalLM", transformers="5", missing=("lm_head.weight",)))
    assert (
        "note: does not fit LlamaForCausalLM of transformers 5: lacks lm_head.weight"
        in run("run", recipe, "--dry-run").stdout
    )
    notes = json.loads(run("run", recipe, "--dry-run", "--json").stdout)["notes"]
    assert len(notes) == 1
    keep_fit(checkpoint, Fit(class_name="LlamaForCausalLM", transformers="5"))
    assert json.loads(run("run", recipe, "--dry-run", "--json").stdout)["notes"] == []


def test_a_dry_run_as_json_has_every_figure(run: Run, recipe: Path) -> None:
    report = json.loads(run("run", recipe, "--dry-run", "--json").stdout)
    assert report["config"] == {"num_hidden_layers": [6, 4]}
    assert [step["layers_after"] for step in report["steps"]] == [4, 4]
    assert report["steps"][0]["bytes_change"] == 4 * report["steps"][0]["parameters_change"] < 0
    assert (report["layers"], report["tensors"], report["exact"], report["writes"]) == (4, 38, True, "checkpoint")
    assert report["trainable_parameters"] < report["parameters"]


def test_a_dry_run_says_what_would_be_measured_and_that_figures_assume_it(run: Run, recipe: Path) -> None:
    result = run("run", recipe, "--dry-run", "--set", "steps.0.prune.layers=lowest 2 by block_influence")
    assert "steps[0] has to be measured first: block_influence" in result.stdout
    assert "~-" in result.stdout
    assert "~ assumes" in result.stdout


def test_a_dry_run_chooses_matrices_by_a_score_that_is_not_there_yet(run: Run, recipe: Path) -> None:
    recipe.write_text(
        recipe.read_text().partition("steps:")[0]
        + "steps:\n  - masked_lora: {layers: all}\n  - drop_adapters: {matrices: lowest 25% by taylor}\n"
    )
    report = json.loads(run("run", recipe, "--dry-run", "--json").stdout)
    assert [step["changes"] for step in report["steps"]] == ["attached 42 adapters", "dropped 10 adapters"]
    assert report["steps"][1]["measure"] == [{"score": "taylor", "data": None}]
    assert (report["adapters"], report["exact"]) == (32, False)


def test_a_dry_run_does_not_refuse_what_only_measuring_can_tell(run: Run, recipe: Path) -> None:
    measured = "steps.0.prune.layers=lowest 2 by block_influence"
    result = run("run", recipe, "--dry-run", "--set", measured, "--set", "steps.1.freeze.layers=original 0")
    assert result.exit_code == 0
    assert "whether steps[1] fits is known only then" in result.stdout


def test_a_recipe_that_does_not_fit_is_told_before_anything_is_started(run: Run, recipe: Path, jobs: Jobs) -> None:
    result = run("run", recipe, "--out", recipe.parent / "out", "--set", "steps.0.prune.layers=9")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "surgeon: steps[0].prune.layers: 9 is out of range\n  allowed: the model has layers 0-5"
    )
    assert not jobs.asked


def test_a_run_hands_the_job_its_recipe_and_settings(run: Run, recipe: Path, jobs: Jobs) -> None:
    out = recipe.parent / "out"
    jobs.answer = {"out": str(out), "parameters": 1000, "bytes": 4000, "recipe": {}, "proof": PROOF}
    jobs.events = [event_of("progress", **{"done": 1, "total": 2, "unit": "bytes", "what": "writing"})]
    result = run("run", recipe, "--out", out, "--device", "cpu", "--dtype", "bfloat16", "--set", "seed=7")
    assert result.stdout == f"{out}\n"
    assert "writing" in result.stderr
    assert "none missing" in result.stderr
    ((job, args, worker),) = jobs.asked
    assert (job, worker) == ("run", None)
    assert (args["device"], args["dtype"], args["verify"]) == ("cpu", "bfloat16", True)
    assert (args["root"], args["out"]) == (str(recipe.parent), str(out))
    assert args["recipe"]["seed"] == 7


def test_a_run_as_json_prints_the_result_alone(run: Run, recipe: Path, jobs: Jobs) -> None:
    jobs.answer = {"out": "/o", "parameters": 1, "bytes": 4, "recipe": {}, "proof": None, "evaluations": []}
    result = run("run", recipe, "--out", recipe.parent / "out", "--json", "--no-verify", "-q")
    assert json.loads(result.stdout) == jobs.answer
    assert result.stderr == ""
    assert jobs.asked[0][1]["verify"] is False


def test_a_model_on_the_command_line_replaces_the_recipes(run: Run, recipe: Path, model: str, jobs: Jobs) -> None:
    recipe.write_text(recipe.read_text().replace(model, "/nowhere"))
    assert run("run", recipe, "--dry-run").exit_code == 1
    assert run("run", recipe, "--dry-run", "--model", model).exit_code == 0


def test_a_model_that_only_the_worker_has_is_not_looked_for_here(run: Run, recipe: Path, jobs: Jobs) -> None:
    jobs.answer = {"out": "/o", "parameters": 1, "bytes": 4, "recipe": {}, "proof": None}
    result = run("run", recipe, "--model", "/far/away", "--out", "o", "--worker", "ssh box surgeon worker")
    assert result.exit_code == 0
    assert jobs.asked[0][2] == "ssh box surgeon worker"


def test_a_recipe_for_another_model_is_refused(run: Run, recipe: Path) -> None:
    result = run("run", recipe, "--dry-run", "--set", "base.fingerprint=ffff")
    assert result.exit_code == 2
    assert "was written for a model with fingerprint ffff" in result.stderr


@pytest.mark.parametrize(
    ("error", "status"), [(GateError("perplexity is 30", allowed="at most 20"), 3), (VerifyError("differs"), 1)]
)
def test_the_kind_of_failure_is_the_exit_status(
    run: Run, recipe: Path, jobs: Jobs, error: Exception, status: int
) -> None:
    jobs.answer = error
    result = run("run", recipe, "--out", recipe.parent / "out", "--json")
    assert result.exit_code == status
    assert json.loads(result.stdout)["error"]["kind"] == type(error).__name__


def test_a_failed_check_fails_the_run(run: Run, recipe: Path, jobs: Jobs) -> None:
    proof = {"logits": {"passed": False, "detail": "differ by up to 3"}}
    jobs.answer = {"out": "/o", "parameters": 1, "bytes": 4, "recipe": {}, "proof": proof}
    result = run("run", recipe, "--out", recipe.parent / "out")
    assert result.exit_code == 1
    assert "logits: differ by up to 3" in result.stderr


def test_a_directory_that_is_there_is_never_written_to(run: Run, recipe: Path, jobs: Jobs) -> None:
    result = run("run", recipe, "--out", recipe.parent)
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert not jobs.asked


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--out DIR is missing"),
        (["--set", "seed"], "--set: 'seed' is no KEY=VALUE"),
        (["--set", "steps.7.prune.layers=1"], "--set steps.7.prune.layers: leads nowhere"),
        (["--set", "seed={"], "'{' is no YAML value"),
        (["--set", "steps.0.prune.layer=1", "--dry-run"], "did you mean 'layers'?"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_allowed(run: Run, recipe: Path, words: list[str], said: str) -> None:
    result = run("run", recipe, *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_run_of_whole_layers_really_writes_a_model(recipe: Path) -> None:
    """In a process of its own; copying needs no torch, so it takes a fraction of a second."""
    out = recipe.parent / "out"
    done = fresh("run", recipe, "--out", out, "--no-verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(out)
    checkpoint = open_checkpoint(out)
    assert checkpoint.config["num_hidden_layers"] == 4
    assert "model.layers.3.mlp.up_proj.weight" in checkpoint.tensors


def test_a_run_through_a_worker_gives_the_same_as_one_here(recipe: Path, run: Run) -> None:
    here, there = recipe.parent / "here", recipe.parent / "there"
    assert fresh("run", recipe, "--out", here, "--no-verify").returncode == 0
    done = fresh("run", recipe, "--out", there, "--worker", shlex.join([sys.executable, "-m", "surgeon", "worker"]))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{there}\n"
    assert "bit for bit" in done.stderr
    assert (here / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()


def test_the_recipe_in_an_export_replays_to_the_same_bytes(recipe: Path, run: Run) -> None:
    first, second = recipe.parent / "first", recipe.parent / "second"
    assert fresh("run", recipe, "--out", first, "--no-verify").returncode == 0
    written = next(path for path in first.rglob("*.yaml"))
    assert load_recipe(written).steps == load_recipe(recipe).steps
    assert fresh("run", written, "--out", second, "--no-verify").returncode == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
