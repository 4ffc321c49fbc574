from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surgeon.cli.error_output import READER_GONE
from tests.cli.conftest import Jobs, Run, fresh


def test_a_misspelt_command_is_not_taken_for_a_model(run: Run) -> None:
    result = run("insepct", "demo")
    assert result.exit_code == 2
    assert result.stderr == (
        "surgeon: 'insepct' is no command, and no model of that name is here; did you mean 'inspect'?\n"
        "  next: surgeon --help\n"
    )


def test_an_unknown_option_names_the_help_to_read(run: Run) -> None:
    result = run("inspect", "m", "--nix")
    assert result.exit_code == 2
    assert result.stderr.startswith("surgeon: no such option")
    assert "next: surgeon inspect --help" in result.stderr


def test_errors_are_json_too_where_json_was_asked_for(run: Run) -> None:
    result = run("inspect", "nix", "--json")
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["where"], error["exit"]) == ("CheckpointError", "nix", 1)
    usage = run("inspect", "--json")
    assert usage.exit_code == 2
    assert json.loads(usage.stdout)["error"]["kind"] == "UsageError"


def test_an_unexpected_failure_goes_into_a_log_and_one_line_says_where(
    run: Run, model: str, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGEON_STATE", str(tmp_path))
    jobs.answer = ZeroDivisionError("by zero")
    result = run("score", model, "--by", "weight_norm")
    assert result.exit_code == 1
    assert result.stderr.startswith("surgeon: this should not have happened: ZeroDivisionError: by zero\n")
    assert "Traceback" not in result.stderr
    (log,) = (tmp_path / "crashes").iterdir()
    assert str(log) in result.stderr
    assert "Traceback" in log.read_text()
    assert "Traceback" in run("score", model, "--by", "weight_norm", "--debug").stderr


def test_a_file_that_may_not_be_read_is_an_error_in_words(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = PermissionError(13, "Permission denied", "/secret")
    result = run("score", model, "--by", "weight_norm")
    assert (result.exit_code, result.stderr) == (1, "surgeon: /secret: permission denied\n")


def test_stopping_a_command_ends_with_130(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = KeyboardInterrupt()
    result = run("score", model, "--by", "weight_norm")
    assert (result.exit_code, result.stderr.strip()) == (130, "surgeon: cancelled")


@pytest.mark.parametrize("flag", ["-q", "--quiet", "-v", "--verbose"])
def test_the_manner_may_be_said_before_or_after_the_command(run: Run, model: str, flag: str) -> None:
    assert run(flag, "inspect", model).exit_code == run("inspect", model, flag).exit_code == 0


def test_the_version_and_the_help_go_to_stdout(run: Run) -> None:
    assert run("--version").stdout.startswith("surgeon 0.")
    for words in (["--help"], ["-h"], ["inspect", "-h"], ["-q", "--help"]):
        result = run(*words)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("Usage: surgeon")


def test_a_reader_that_goes_away_is_no_failure_worth_a_word(model: str) -> None:
    command = [sys.executable, "-m", "surgeon", "inspect", model, "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert done.returncode == READER_GONE
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_told_in_words(model: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "surgeon", "inspect", model, "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "surgeon: output: no space left on device\n")


def test_ctrl_c_ends_a_real_process_with_130(model: str, tmp_path: Path) -> None:
    """The worker says hello and then nothing; the first Ctrl+C asks, the second does not."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys, time\n"
        "hello = {'event': 'hello', 'protocol': 3, 'version': '0', 'pid': 1}\n"
        "print(json.dumps({'id': 0, 'body': hello}), flush=True)\n"
        "line = sys.stdin.readline(); print(json.dumps({'id': 1, 'body': {'event': 'log', 'level': 'warning', "
        "'text': 'begun'}}), flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "surgeon", "score", model, "--by", "weight_norm"]
    with subprocess.Popen(
        [*command, "--worker", f"{sys.executable} {script}"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # two that are pending at once are one
        assert process.wait(20) == 130
        assert "surgeon: the worker was stopped" in process.stderr.read()


def test_a_worker_that_cannot_be_started_is_an_error_in_words(model: str) -> None:
    done = fresh("score", model, "--by", "weight_norm", "--worker", "no-such-program --x")
    assert done.returncode == 1
    assert done.stderr == "surgeon: no-such-program --x: cannot be started: No such file or directory\n"
