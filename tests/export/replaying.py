"""Runs recipes in this process or in a fresh one, and looks at what they left."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.jobs import PlainEmit, keep_silent, never, perform

Step = Mapping[str, Mapping[str, Any]]
PRUNE: Step = {"prune": {"layers": [1, 2]}}
COPY: Step = {"expand": {"after": [0], "init": "copy"}}
MEAN: Step = {"expand": {"after": [0], "init": "mean"}}


def job_args(base: Path, out: Path, steps: Sequence[Step], **more: Any) -> dict[str, Any]:
    """Return the arguments of a run job that does not verify unless told to."""
    recipe = {"version": 1, "base": {"model": str(base)}, "steps": list(steps)}
    return {"recipe": recipe, "out": str(out), "verify": False, **more}


def run(
    base: Path,
    out: Path,
    *steps: Step,
    emit: PlainEmit = keep_silent,
    cancelled: Callable[[], bool] = never,
    **more: Any,
) -> dict[str, Any]:
    """Run a recipe in this process."""
    return perform("run", job_args(base, out, steps, **more), emit, cancelled)


def start_run(
    base: Path, out: Path, *steps: Step, prelude: str = "", hash_seed: str = "random", **more: Any
) -> subprocess.Popen[str]:
    """Start a recipe in a fresh process; `prelude` runs there first, and what it prints can be read."""
    fields = json.dumps(json.dumps(job_args(base, out, steps, **more)))
    code = "\n".join([
        "import json, sys",
        "from surgeon.backend.jobs.dispatch import perform",
        "from surgeon.core.jobs import RunJob",
        "emit = lambda event: None",
        prelude,
        f"perform(RunJob(**json.loads({fields})), emit, lambda: False)",
        "print('torch' in sys.modules, flush=True)",
    ])  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def digests(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file below a directory, by relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory, hidden ones too."""
    return sorted(path.name for path in directory.iterdir())
