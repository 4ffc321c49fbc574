"""Runs command lines in this process or in a fresh one, on a tiny model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from surgeon.cli.group import SurgeonGroup
from surgeon.core.events import Event
from surgeon.core.jobs import AnyJob
from tests.cli.tiny_checkpoints import tiny_llama
from tests.jobs import plain_job, result_of

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def run() -> Run:
    """Run a command line here: stdout and stderr apart, and the exit status."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(SurgeonGroup(), [str(word) for word in words])

    return run


def fresh(*words: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "surgeon", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **settings)


class Jobs:
    """Stands in for the worker: keeps what was asked and answers what it was told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.events: list[Event] = []
        self.answer: Any = {}

    def __call__(self, job: AnyJob, on_event: Any, worker: str | None = None) -> Any:
        name, args = plain_job(job)
        self.asked.append((name, args, worker))
        for event in self.events:
            on_event(event)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return result_of(name, self.answer)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    stand_in = Jobs()
    monkeypatch.setattr("surgeon.client.run_job", stand_in)
    return stand_in


@pytest.fixture
def recipe(tmp_path: Path, model: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"version: 1\nbase: {{model: {model}}}\nsteps:\n  - prune: {{layers: 1-2}}\n  - freeze: {{layers: first}}\n"
    )
    return path
