"""Learning steps on the command line: rehearsed without torch, trained, told of, replayed, taken up after a kill."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surgeon.cli.progress_output import ConsoleReporter
from surgeon.core.events import Event
from surgeon.core.recipe.command_text import command_line
from surgeon.core.recipe.recipe import load_recipe, step_of, step_to_builtins
from tests.backend.training_recipes import pupil
from tests.cli.conftest import Run, fresh
from tests.jobs import event_of

FIELDS = (
    "--objective", "lm", "--data", "text.jsonl", "--steps", "6", "--held-out", "20%", "--eval-steps", "3",
    "--max-length", "24", "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a model and a text."""
    pupil(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counted(stderr: str) -> int:
    """Return how many lines tell of training."""
    return sum(line.startswith("training: step") for line in stderr.splitlines())


def test_a_rehearsal_says_what_would_be_trained_without_torch(place: Path) -> None:
    """Numbers and memory from the header."""
    code = (
        "import sys\nfrom surgeon.cli.group import SurgeonGroup\n"
        "try:\n    SurgeonGroup().main(sys.argv[1:])\nexcept SystemExit:\n"
        "    print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    words = ["train", str(place / "model"), *FIELDS, "--dry-run"]
    told = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "False False"
    assert "steps[0] has to be learned, unless its result is kept already: it trains 21.7k numbers" in told.stdout


def test_a_frozen_part_and_adapters_need_less(place: Path, run: Run) -> None:
    """What a freeze or adapters leave to train, and the memory that goes with it; a teacher's logits come on top."""
    model, told = place / "model", {}
    for name, before, objective in (
        ("all", "", "lm"), ("taught", "", "distill"), ("frozen", "  - freeze: {layers: all, outside: [norm]}\n", "lm"),
        ("adapted", "  - masked_lora: {layers: all, roles: [mlp.up], rank: 2}\n", "lm"),
    ):  # fmt: skip
        recipe = place / f"{name}.yaml"
        train = f"  - train: {{objective: {objective}, data: text.jsonl}}\n"
        recipe.write_text(f"version: 1\nbase: {{model: {model}}}\nsteps:\n{before}{train}")
        told[name] = json.loads(run("run", recipe, "--dry-run", "--json").stdout)["steps"][-1]["learn"]
    every = json.loads(run("run", place / "all.yaml", "--dry-run", "--json").stdout)["parameters"]
    words = 96 * 32 * 2  # the embedding and the head
    adapters = 2 * 2 * (48 + 32)
    parameters = {"all": every, "taught": every, "frozen": words, "adapted": adapters}
    assert {name: one["parameters"] for name, one in told.items()} == parameters
    taken = {name: one["bytes"] for name, one in told.items()}
    assert 16 * every < taken["all"] < taken["taught"]
    assert taken["frozen"] < taken["all"]
    assert taken["adapted"] < taken["all"] - 12 * (every - adapters)


def test_what_was_trained_is_exported_verified_and_replayed_from_elsewhere(place: Path, run: Run) -> None:
    """The export's own recipe finds the text from where it lies, trains nothing, and comes to the same bytes."""
    done = run("train", place / "model", *FIELDS, "--out", "made/out", "--save-recipe", place / "made.yaml")
    assert done.exit_code == 0, done.stderr
    assert counted(done.stderr) == 7
    assert load_recipe(place / "made.yaml").steps[0].operation.data == "text.jsonl"  # type: ignore[attr-defined]
    assert load_recipe(place / "made/out/recipe.yaml").steps[0].operation.data == "../../text.jsonl"  # type: ignore[attr-defined]
    os.chdir(place / "made")
    again = run("run", "out/recipe.yaml", "--out", "again")
    assert again.exit_code == 0, again.stderr
    assert counted(again.stderr) == 0
    files = [(place / "made" / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]
    compared = run("verify", "out")
    assert "equal bit for bit" in compared.stdout
    shutil.rmtree(Path(os.environ["SURGEON_CACHE"]) / "learned")
    alone = run("verify", "out")
    assert alone.exit_code == 0, alone.stderr
    assert "no longer kept on this machine: nothing was compared" in alone.stdout


def test_a_recipe_saved_elsewhere_names_the_text_from_there(place: Path, run: Run) -> None:
    """Of files given on the command line, relative to where one is."""
    (place / "held.jsonl").write_text('{"text": "kept back"}\n')
    (place / "deep").mkdir()
    words = [*FIELDS, "--held-out", "held.jsonl", "--save-recipe", place / "deep/r.yaml"]
    assert run("train", place / "model", *(word for word in words if word not in ("--device", "cpu"))).exit_code == 0
    operation: Any = load_recipe(place / "deep/r.yaml").steps[0].operation
    assert (operation.data, operation.held_out) == ("../text.jsonl", "../held.jsonl")


@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "lm", "steps": 3},
        {"objective": {"dpo": {"beta": 0.3}}, "data": "my pairs.jsonl", "held_out": "5%", "epochs": 1.5},
        {"objective": "sft", "gradient_checkpointing": True, "deterministic": False, "learning_rate": 3e-5},
    ],
)
def test_the_command_that_is_shown_says_the_same_step(place: Path, run: Run, fields: dict[str, Any]) -> None:
    """Switches, settings of objectives, names with blanks: a shell reads back what was drafted."""
    step = step_of("train", fields, "test")
    words = shlex.split(command_line(step, str(place / "model")))
    report = json.loads(run(*words[1:], "--dry-run", "--json").stdout)
    assert report["steps"][0]["step"] == step_to_builtins(step)


def event(done: int, total: int = 40, **figures: float) -> Event:
    body = {"done": done, "total": total, "unit": "steps", "what": "training", "tokens_per_second": 12345.6,
            "eta_seconds": 75.0, "loss": 3.21, **figures}  # fmt: skip
    return event_of("progress", **body)


def test_a_pipe_gets_a_line_for_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    """And one for the end; what is measured in between is no line of its own."""
    reporter = ConsoleReporter()
    for done in range(1, 41):
        reporter.on_event(event(done, held_out_loss=2.5, held_out_before_loss=4.0, accuracy=0.5))
        reporter.on_event(event_of("progress", done=1, total=2, what="held-out loss"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    says = "loss 3.21, held-out loss 4.00→2.50, accuracy 0.500, 12.3k tokens/s, 1m15s left"
    assert lines[1] == f"training: step 4 of 40, {says}"


def test_a_bar_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps cannot be wiped."""
    screen: Any = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("surgeon.cli.progress_output.sys", SimpleNamespace(stderr=screen))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    ConsoleReporter().on_event(event(10, held_out_loss=2.5, held_out_before_loss=4.0, margin=1.25))
    assert len(screen.getvalue()) == 89
    assert screen.getvalue().startswith("training  ██████░░░░░░░░░░░░░░░░░░  25%  10 / 40 steps  loss 3.21  held-out")


@pytest.mark.slow
def test_a_killed_command_goes_on_when_it_is_given_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same words; the export is that of a run that nobody killed."""
    words = ["train", str(place / "model"), *FIELDS, "--steps", "300", "--save-steps", "5", "--learning-rate", "1e-3"]
    command = [sys.executable, "-m", "surgeon", "-v", *words, "--out", "out"]
    cache = Path(os.environ["SURGEON_CACHE"])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while not list(cache.glob("learned/*.state/state.pt")):
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert not (place / "out").exists()
    mended = fresh("-v", *words, "--out", "out")
    assert mended.returncode == 0, mended.stderr
    assert "going on from step" in mended.stderr
    assert [path.suffix for path in (cache / "learned").iterdir()] == [""]
    monkeypatch.setenv("SURGEON_CACHE", str(cache) + "-other")
    unbroken = fresh(*words, "--out", "whole")
    assert unbroken.returncode == 0, unbroken.stderr
    files = [(place / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1]
