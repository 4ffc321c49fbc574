"""What the tree promises to whoever reads it: each package says what it is for, and nothing grows out of hand."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import surgeon

ROOT = Path(surgeon.__file__).parent
PACKAGES = sorted(path.parent for path in ROOT.rglob("__init__.py"))
# One file per extension or command: as many as there are.
LISTS = {"architectures", "config_formats", "operations", "scores", "objectives", "commands"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT.parent))


@pytest.mark.parametrize("package", PACKAGES[1:], ids=_name)
def test_every_package_says_what_it_is_for_what_it_may_import_and_what_goes_where(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert docstring is not None
    assert len([line for line in docstring.splitlines() if line.strip()]) >= 3


@pytest.mark.parametrize("package", PACKAGES, ids=_name)
def test_no_package_has_more_than_fifteen_modules(package: Path) -> None:
    modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    assert package.name in LISTS or len(modules) <= 15


def test_no_file_is_longer_than_three_hundred_lines() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


@pytest.mark.skipif("PYTEST_XDIST_WORKER_COUNT" not in os.environ, reason="there are no pytest workers")
def test_pytest_workers_share_the_cores() -> None:
    """Two workers with two spinning threads each took many times as long on two cores."""
    import torch

    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    assert torch.get_num_threads() * workers <= max(os.cpu_count() or 1, workers)
