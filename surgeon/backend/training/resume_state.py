"""The state that a broken run goes on from: one file, replaced whole. What no run goes on from is removed in time."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from surgeon.backend.disk_faults import disk_faults
from surgeon.core.checkpoint.file_system import Lock, sync, try_lock

DAYS = 30
"""How long what a broken run left is kept. A state takes three times what is trained, and serves that run alone."""


def remove_abandoned(results: Path) -> Iterator[tuple[Path, int]]:
    """Remove what broken runs left beside results and none has gone on from for DAYS; yield each, and its bytes.

    What a run is using is locked, and stays; so does a state that is younger, unless its result is there.
    """
    for place in sorted([*results.glob("*.state"), *results.glob("*.partial")]):
        with suppress(OSError), _locked(place) as held:
            files = [file.stat() for file in place.iterdir()]
            newest = max(one.st_mtime for one in (place.stat(), *files))
            if held and (newest < time.time() - DAYS * 24 * 3600 or place.with_suffix("").exists()):
                shutil.rmtree(place)
                yield place, sum(one.st_size for one in files)


@contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """Lock a directory if no other run has; yield whether it is locked."""
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Without locks nobody knows whether a run is using it.
        yield try_lock(handle) is Lock.OURS and os.path.samestat(os.fstat(handle), place.stat())
    finally:
        os.close(handle)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state beside its place and rename it: whoever goes on sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: without locks another process may be saving the same.
    partial = path.with_suffix(f".{uuid4().hex[:8]}.partial")
    try:
        with disk_faults(), partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            sync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_state(path: Path, device: torch.device) -> Mapping[str, Any] | None:
    """Return a saved state; None where there is none, or where it cannot be read: then all is done again."""
    try:
        found: Mapping[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return found
