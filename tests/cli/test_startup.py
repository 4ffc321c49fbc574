"""Looking at a model costs no heavy import: watched in fresh interpreters through sys.modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "pydantic",
    "huggingface_hub",
    "textual",
    "accelerate",
    "peft",
    "safetensors",
    "datasets",
    "pandas",
    "pyarrow",
}
WATCH = """
import sys
from surgeon.cli import main
sys.argv = ["surgeon", *sys.argv[1:]]
try:
    main()
except SystemExit as leave:
    assert leave.code == 0, leave.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded_by(*words: str) -> set[str]:
    command = [sys.executable, "-c", WATCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        [],
        ["inspect", "{model}"],
        ["inspect", "{model}", "--json"],
        ["list", "scores"],
        ["list", "operations"],
        ["schema"],
        ["run", "{recipe}", "--dry-run"],
        ["prune", "{model}", "--layers", "lowest 2 by block_influence", "--dry-run", "--json"],
        ["data", "{rows}", "--rows", "1"],
        ["data", "python_docs", "--json"],
        ["score", "--help"],
        ["prune", "--help"],
    ],
)
def test_looking_and_planning_load_nothing_heavy(model: str, recipe: Path, words: list[str]) -> None:
    rows = recipe.with_name("rows.jsonl")
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    loaded = loaded_by(*(word.format(model=model, recipe=recipe, rows=rows) for word in words))
    assert not loaded & HEAVY


def test_copying_whole_layers_loads_no_torch(recipe: Path) -> None:
    loaded = loaded_by("run", str(recipe), "--out", str(recipe.parent / "out"), "--no-verify")
    assert not loaded & (HEAVY - {"huggingface_hub"})


def test_one_command_does_not_import_another() -> None:
    code = "import sys; from surgeon.cli.group import SurgeonGroup; SurgeonGroup().get_command(None, 'list')\n"
    code += "print(*(name for name in sys.modules if name.startswith('surgeon.cli.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    others = {"surgeon.cli.commands.inspect", "surgeon.cli.commands.score", "surgeon.cli.operation_command"}
    assert not others & set(done.stdout.split())
