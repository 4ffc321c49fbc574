"""What every test stands on: no hub, few threads, its own directories, and the real demo model for those that ask."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports huggingface_hub or torch, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Spinning threads of several pytest workers would fight over the cores. Only workers are told: what their controller
# sets they would inherit.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _WORKERS = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the demo model, so that `-m "not model"` needs no network."""
    for item in items:
        if "demo_model" in getattr(item, "fixturenames", ()):
            item.add_marker("model")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The real demo model, prepared once per machine; only to be read."""
    from surgeon.demo.fetching import fetch_demo
    from tests.jobs import job_context

    return fetch_demo(job_context())


@pytest.fixture
def demo_by_name(demo_model: Path, _own_directories: Path) -> Path:
    """The demo model, such that the name `demo` finds it too."""
    link = _own_directories / "cache" / "demo" / demo_model.name
    link.parent.mkdir(parents=True)
    link.symlink_to(demo_model, target_is_directory=True)
    return link


@pytest.fixture(autouse=True)
def _own_directories(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that a test keeps reaches the next test, or the person who runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SURGEON_CACHE", str(home / "cache"))
    monkeypatch.setenv("SURGEON_STATE", str(home / "state"))
    return home
