from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from surgeon.cli.group import COMMANDS, SurgeonGroup
from surgeon.cli.operation_command import command_of
from surgeon.core.jobs import AnyJob, RunJob
from surgeon.core.recipe.command_text import command_line
from surgeon.core.recipe.measured_selection import measured_selection
from surgeon.core.recipe.operation import operations
from surgeon.core.recipe.recipe import Step, load_recipe, recipe_from_builtins, recipe_to_builtins, step_of
from surgeon.core.selection.selection import parse_selection
from surgeon.session import Session
from tests.cli.conftest import Jobs, Run


@pytest.mark.parametrize("name", sorted(operations()))
def test_every_operation_is_a_command_with_an_option_for_each_field(run: Run, name: str) -> None:
    words = run(name.replace("_", "-"), "--help").stdout.split()
    for field in msgspec.structs.fields(operations()[name]):
        assert any(word.startswith(f"--{field.encode_name.replace('_', '-')}") for word in words)
    assert "--dry-run" in words


def test_no_operation_has_the_name_of_another_command() -> None:
    assert not {name.replace("_", "-") for name in operations()} & {*COMMANDS, "open"}
    names = SurgeonGroup().list_commands(command_of("prune").make_context("prune", ["m", "--layers", "0"]))
    assert len(names) == len(set(names))


def test_no_option_is_given_twice() -> None:
    for name in operations():
        spelt = [opt for param in command_of(name.replace("_", "-")).params for opt in param.opts]
        assert len(spelt) == len(set(spelt)), name


def asked(jobs: Jobs) -> dict[str, Any]:
    plain: dict[str, Any] = jobs.asked[-1][1]["recipe"]
    return plain


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    class Echo(Jobs):
        def __call__(self, job: AnyJob, on_event: Any, worker: str | None = None) -> Any:
            assert isinstance(job, RunJob)
            self.answer = {"out": job.out, "parameters": 1, "bytes": 4, "recipe": job.recipe}
            return super().__call__(job, on_event, worker)

    echo = Echo()
    monkeypatch.setattr("surgeon.client.run_job", echo)
    return echo


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["prune", "--layers", "1-2"], {"prune": {"layers": "1-2"}}),
        (["expand", "--after", "0,3", "--init", "copy"], {"expand": {"after": "0,3", "init": "copy"}}),
        (["freeze", "--except", "last", "--roles", "attention,mlp.down"],
         {"freeze": {"except": "last", "roles": ["attention", "mlp.down"]}}),
        (["freeze", "--layers", "0", "--outside", "norm"], {"freeze": {"layers": "0", "outside": ["norm"]}}),
        (["masked-lora", "--layers", "all", "--rank", "4", "--alpha", "2.5"],
         {"masked_lora": {"layers": "all", "rank": 4, "alpha": 2.5}}),
    ],
)  # fmt: skip
def test_options_become_the_fields_of_a_step(
    run: Run, model: str, tmp_path: Path, answered: Jobs, words: list[str], step: dict[str, Any]
) -> None:
    result = run(words[0], model, *words[1:], "--out", tmp_path / "out", "--seed", 5)
    assert result.exit_code == 0, result.stderr
    assert asked(answered)["steps"] == [step]
    assert asked(answered)["base"] == {"model": model}
    assert asked(answered)["seed"] == 5


def test_a_selection_that_ranks_takes_data_and_protected_layers(
    run: Run, model: str, tmp_path: Path, answered: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs.txt").write_text("text")
    words = ["--layers", "lowest 2 by block_influence", "--data", "docs.txt", "--protect", "first,last"]
    assert run("prune", model, *words, "--out", "out").exit_code == 0
    ranked = {"lowest": 2, "by": "block_influence", "data": "docs.txt", "protect": ["first", "last"]}
    assert asked(answered)["steps"] == [{"prune": {"layers": ranked}}]
    assert answered.asked[0][1]["root"] == str(tmp_path)


def test_data_is_named_as_the_saved_recipe_sees_it(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs.txt").write_text("text")
    saved = tmp_path / "recipes" / "r.yaml"
    words = ["--layers", "lowest 25% by weight_norm", "--data", "docs.txt", "--save-recipe", saved]
    assert run("prune", model, *words).exit_code == 0
    (ranked,) = load_recipe(saved).steps[0].operation.ranked()
    assert (ranked.data, ranked.count) == ("../docs.txt", "25%")


def test_a_recipe_is_saved_into_a_directory_that_is_made_for_it(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data is read from here, before there is such a directory; what it came to holds there."""
    monkeypatch.chdir(tmp_path)
    Path("docs.txt").write_text("text")
    saved = tmp_path / "new" / "r.yaml"
    words = ["--layers", "lowest 1 by weight_norm", "--data", "docs.txt", "--save-recipe", saved]
    result = run("prune", model, *words, "--out", "out", "--no-verify")
    assert result.exit_code == 0, result.stderr
    report = json.loads(run("run", saved, "--dry-run", "--json").stdout)
    assert (report["exact"], report["steps"][0]["stale"]) == (True, "")
    Path("docs.txt").write_text("another text")
    assert json.loads(run("run", saved, "--dry-run", "--json").stdout)["exact"] is False


def test_so_is_a_base_that_is_a_relative_directory(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the recipe runs from anywhere; what is dry-run or run now is the same model."""
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(model)
    for name in ("base", "./base"):
        saved = tmp_path / "recipes" / f"{len(name)}.yaml"
        assert run("prune", name, "--layers", "1", "--save-recipe", saved).exit_code == 0
        assert load_recipe(saved).base.model == "../base"
        monkeypatch.chdir("/")
        assert run("run", saved, "--dry-run").exit_code == 0
        monkeypatch.chdir(tmp_path)


def test_a_model_that_is_typed_is_meant_from_the_current_directory(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a recipe that lies elsewhere and has a base of that name beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "here" / "base").symlink_to(model)
    recipe = tmp_path / "recipes" / "r.yaml"
    recipe.write_text("version: 1\nbase: {model: ./base}\nsteps:\n  - prune: {layers: 1}\n")
    monkeypatch.chdir(tmp_path / "here")
    assert run("run", recipe, "--dry-run").exit_code == 1
    assert run("run", recipe, "--dry-run", "--model", "./base").exit_code == 0
    assert run("score", "./base", "--by", "weight_norm", "--recipe", recipe).exit_code == 0
    (tmp_path / "recipes" / "base").symlink_to(model)
    assert run("run", recipe, "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("1-3", "1-3"),
        ("except 1-3,7", "except 1-3,7"),
        ("0, lowest 2 by removal", ["0", {"lowest": 2, "by": "removal", "protect": ["first", "last"]}]),
        ("except  block 2 by removal", {"except": {"block": 2, "by": "removal", "protect": ["first", "last"]}}),
    ],
)
def test_protection_reaches_every_ranked_part_and_nothing_else(text: str, raw: Any) -> None:
    assert measured_selection(text, None, "first,last") == raw
    plain = parse_selection(measured_selection(text, None, None))
    assert plain == parse_selection(text)


def test_a_recipe_is_saved_with_what_was_measured(run: Run, model: str, tmp_path: Path, jobs: Jobs) -> None:
    saved = tmp_path / "r.yaml"
    resolved = {"prune": {"layers": "lowest 1 by weight_norm"}, "resolved": {"layers": [3]}}
    done = {"version": 1, "base": {"model": model, "fingerprint": "ff"}, "steps": [resolved]}
    jobs.answer = {"out": "/o", "parameters": 1, "bytes": 4, "recipe": done, "proof": None}
    words = ["--layers", "lowest 1 by weight_norm", "--out", tmp_path / "out", "--save-recipe", saved]
    assert run("prune", model, *words).exit_code == 0
    assert recipe_to_builtins(load_recipe(saved))["steps"] == [resolved]


def test_a_recipe_can_be_saved_without_running_it(run: Run, model: str, tmp_path: Path, jobs: Jobs) -> None:
    result = run("prune", model, "--layers", "3", "--save-recipe", tmp_path / "r.yaml")
    assert result.exit_code == 0
    assert not jobs.asked
    assert load_recipe(tmp_path / "r.yaml").base.model == model
    again = run("prune", model, "--layers", "3", "--save-recipe", tmp_path / "r.yaml")
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_a_dry_run_reports_and_runs_nothing(run: Run, model: str, jobs: Jobs) -> None:
    report = json.loads(run("expand", model, "--after", "0", "--dry-run", "--json").stdout)
    assert (report["layers"], report["steps"][0]["changes"]) == (7, "inserted 1")
    assert not jobs.asked


def test_adapters_alone_are_announced_as_such(run: Run, model: str) -> None:
    report = json.loads(run("masked-lora", model, "--layers", "last", "--dry-run", "--json").stdout)
    assert (report["writes"], report["adapters"]) == ("adapter", 7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune", "--layers", "x"], "prune.layers: 'x' is no selection"),
        (["prune"], "missing option '--layers'"),
        (["prune", "--layers", "0", "--form", "x"], "no such option"),
        (["expand", "--after", "0", "--init", "zero"], "'zero' is not one of"),
        (["masked-lora", "--layers", "0", "--rank", "0"], "masked_lora.rank: has to be a whole number >= 1"),
        (["masked-lora", "--layers", "0", "--rank", "many"], "masked_lora.rank: is text, and has to be a whole number"),
        (["prune", "--layers", "0", "--protect", "last"], "--data and --protect go with layers chosen by a score"),
        (["prune", "--layers", "9"], "9 is out of range"),
        (["prune", "--layers", "0"], "--out DIR is missing"),
    ],
)
def test_wrong_options_are_refused_in_words(run: Run, model: str, words: list[str], said: str) -> None:
    result = run(words[0], model, *words[1:])
    assert result.exit_code == 2
    assert said in result.stderr.replace("No such", "no such")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        ("prune", {"layers": "1-2"}),
        ("prune", {"layers": [1, 2]}),
        ("expand", {"after": [0, 2], "init": "copy"}),
        ("freeze", {"except": "first 2", "roles": ["attention"]}),
        ("masked_lora", {"layers": "all", "rank": 2}),
        ("reorder", {"order": [0, 2, 1, 3, 4, 5]}),
    ],
)
def test_the_command_that_a_session_shows_does_the_same(
    run: Run, model: str, answered: Jobs, tmp_path: Path, operation: str, fields: dict[str, Any]
) -> None:
    session = Session.open(model)
    step = session.step(operation, fields)
    words = shlex.split(session.preview(step).command)
    session.close()
    assert run(*words[1:], "--out", tmp_path / "out").exit_code == 0
    assert recipe_from_builtins(asked(answered)).steps == (step,)


def test_the_command_of_a_measured_step_keeps_data_and_protection(model: str) -> None:
    ranked = {"lowest": 2, "by": "block_influence", "data": "docs.txt", "protect": ["first", "last 2"]}
    command = command_line(Step(step_of("prune", {"layers": ranked}, "test").operation), model)
    assert command.endswith("--layers 'lowest 2 by block_influence' --data docs.txt --protect 'first,last 2'")
