"""verify, list, demo, worker and opening the interface."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from surgeon.core.jobs import PROTOCOL
from surgeon.core.recipe.operation import operations
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.errors import CheckpointError
from tests.cli.conftest import Jobs, Run

GOOD = {"keys": {"passed": True, "detail": "all there"}}
BAD = {**GOOD, "logits": {"passed": False, "detail": "differ"}}


def test_verify_prints_the_checks(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = {"proof": GOOD}
    result = run("verify", model, "--base", "demo")
    assert result.exit_code == 0
    assert "keys   passed  all there" in result.stdout
    expected = {"root": ".", "directory": model, "base": "demo", "trust_remote_code": False}
    expected |= {"device": None, "dtype": None}
    assert jobs.asked == [("verify", expected, None)]


def test_a_failed_check_fails_verify(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = {"proof": BAD}
    result = run("verify", model)
    assert result.exit_code == 1
    assert "logits  FAILED  differ" in result.stdout
    assert "did not pass: logits" in result.stderr
    as_json = run("verify", model, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout) == {"passed": False, "proof": BAD}


def test_what_is_not_proved_is_neither_passed_nor_failed(run: Run, model: str, jobs: Jobs) -> None:
    """A model that could not be loaded is not what passed; a missing base is only said."""
    base = {"base": {"passed": None, "detail": "not at hand"}}
    unloaded = {"keys": {"passed": None, "detail": "not loaded"}, "bytes": {"passed": True, "detail": "equal"}}
    for proof, passed, names in (({**GOOD, **base}, True, ["base"]), ({**unloaded, **base}, None, ["keys", "base"])):
        jobs.answer = {"proof": proof}
        result = run("verify", model)
        assert result.exit_code == 0
        assert "base   not proved  not at hand" in result.stdout
        found = json.loads(run("verify", model, "--json").stdout)
        assert found == {"passed": passed, "not_proved": names, "proof": proof}


def test_verify_tells_what_is_broken_on_disk_at_once(run: Run, tmp_path: Path, jobs: Jobs) -> None:
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert "there is no config.json" in result.stderr
    assert not jobs.asked


@pytest.mark.parametrize(("what", "known"), [("scores", score_kinds), ("operations", operations)])
def test_list_names_everything_there_is(run: Run, what: str, known: Any) -> None:
    rows = json.loads(run("list", what, "--json").stdout)
    assert [row["name"] for row in rows] == sorted(known())
    lines = run("list", what).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sorted(known())


def test_list_of_something_else_is_wrong_usage(run: Run) -> None:
    result = run("list", "things")
    assert result.exit_code == 2
    assert "'things' is not one of 'scores', 'operations'" in result.stderr


def test_demo_prints_where_the_model_is(run: Run, jobs: Jobs) -> None:
    jobs.answer = {"path": "/models/demo"}
    assert run("demo").stdout == "/models/demo\n"
    assert json.loads(run("demo", "--json").stdout) == {"path": "/models/demo"}
    assert jobs.asked[0] == ("demo", {"root": ".", "device": None, "dtype": None}, None)
    jobs.answer = CheckpointError("no network")
    assert run("demo").exit_code == 1


def test_worker_greets_and_leaves_when_its_stdin_ends() -> None:
    command = [sys.executable, "-m", "surgeon", "worker"]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=60)
    assert done.returncode == 0
    greeting = json.loads(done.stdout.splitlines()[0])
    assert (greeting["body"]["event"], greeting["body"]["protocol"]) == ("hello", PROTOCOL)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """A terminal, and an interface that only notes what it was opened with."""
    calls: list[tuple[Any, dict[str, Any]]] = []

    def run_app(session: Any, **settings: Any) -> int:
        calls.append((session, settings))
        session.close()
        return 4 if settings.get("data") == "fail" else 0

    stand_in = types.ModuleType("surgeon.ui.app")
    stand_in.run_app = run_app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "surgeon.ui.app", stand_in)
    monkeypatch.setattr("surgeon.cli.launch_ui.on_terminal", lambda stream: True)
    monkeypatch.setattr("surgeon.cli.launch_ui.reads_keys", lambda: True)
    return calls


def test_a_model_is_opened_in_the_interface(run: Run, model: str, opened: list[Any]) -> None:
    words = ["--worker", "far", "--data", "d.txt", "--device", "cpu", "--dtype", "float16"]
    assert run(model, *words).exit_code == 0
    assert run(*words, model).exit_code == 0
    for session, settings in opened:
        assert session.model == model
        assert settings == {"worker": "far", "data": "d.txt", "device": "cpu", "dtype": "float16"}


def test_the_exit_status_is_the_interfaces(run: Run, model: str, opened: list[Any]) -> None:
    assert run(model, "--data", "fail").exit_code == 4


def test_a_recipe_alone_names_its_model(run: Run, recipe: Path, model: str, opened: list[Any]) -> None:
    assert run("--recipe", recipe).exit_code == 0
    assert run(recipe).exit_code == 0
    assert run(model, "--recipe", recipe.parent / "new.yaml").exit_code == 0
    assert [(session.model, len(session.steps)) for session, _ in opened] == [(model, 2), (model, 2), (model, 0)]


def test_a_model_that_is_not_there_is_an_error_without_a_terminal_too(run: Run) -> None:
    """And no help text with exit status 0."""
    result = run("./nosuchdir")
    assert result.exit_code != 0
    assert "Commands" not in result.output


def test_demo_opens_what_it_fetched(run: Run, model: str, jobs: Jobs, opened: list[Any]) -> None:
    jobs.answer = {"path": model}
    result = run("demo", "--open")
    assert result.exit_code == 0
    assert opened[0][0].model == model


def test_a_model_named_like_a_command_is_reached_by_its_path(
    run: Run, model: str, opened: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list").symlink_to(model, target_is_directory=True)
    assert run("./list").exit_code == 0
    assert opened[0][0].model == "./list"


def test_a_model_that_cannot_be_opened_is_an_error(run: Run, opened: list[Any]) -> None:
    result = run("./nowhere")
    assert result.exit_code == 1
    assert "no such directory" in result.stderr


@pytest.mark.parametrize("words", [[], ["-q"], ["{model}"], ["--recipe", "{recipe}"]])
def test_without_a_terminal_the_help_is_shown(run: Run, model: str, recipe: Path, words: list[str]) -> None:
    result = run(*(word.format(model=model, recipe=recipe) for word in words))
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: surgeon [OPTIONS] [MODEL | COMMAND]")
