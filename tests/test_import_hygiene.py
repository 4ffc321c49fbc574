"""What each room loads, seen from fresh interpreters: preview, validation, undo and export cost no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "pydantic",
    "huggingface_hub",
    "textual",
    "safetensors",
    "peft",
    "accelerate",
    "datasets",
    "pandas",
    "pyarrow",
)
ROOMS = ("", ".errors", ".core", ".architectures", ".operations", ".scores", ".export", ".client", ".session")

# Imports everything below the rooms, a room at a time, and tells which heavy libraries came with it.
_LOOK = """
import importlib, json, pkgutil, sys
name = sys.argv[1]
module = importlib.import_module(name)
for found in pkgutil.walk_packages(getattr(module, "__path__", []) if name != "surgeon" else [], name + "."):
    importlib.import_module(found.name)
print(json.dumps([heavy for heavy in sys.argv[2:] if heavy in sys.modules]))
"""


def loaded_by(code: str, *arguments: str) -> list[str]:
    """Return the heavy libraries that a fresh interpreter has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *HEAVY], capture_output=True, text=True, check=True, timeout=60
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_nothing_heavy(room: str) -> None:
    """Every module in it, each extension too."""
    assert loaded_by(_LOOK, f"surgeon{room}") == []


def test_opening_previewing_undoing_and_planning_load_nothing_heavy(tmp_path: Path) -> None:
    """Not only importing: doing what a front end does between two measurements."""
    from tests.export.handmade_shards import write_llama

    base = write_llama(tmp_path / "base", layers=6)
    code = f"""
import json, sys
from pathlib import Path
import surgeon
from surgeon.session import Session
session = Session.open({str(base)!r})
session.apply(session.step("prune", {{"layers": [1, 2]}}))
session.apply(session.step("expand", {{"after": [0], "init": "mean"}}))
session.apply(session.step("freeze", {{"except": "inserted"}}))
session.apply(session.step("masked_lora", {{"layers": "inserted"}}))
session.undo(); session.redo()
assert session.plan.parameters
session.save(Path({str(tmp_path / "recipe.yaml")!r}))
session.close()
print(json.dumps([heavy for heavy in sys.argv[1:] if heavy in sys.modules]))
"""
    assert loaded_by(code) == []


def test_the_worker_module_itself_is_light() -> None:
    """It greets first and loads torch then."""
    assert loaded_by(_LOOK, "surgeon.backend.worker") == []
    assert loaded_by(_LOOK, "surgeon.backend.jobs.run") == []
