"""What has been measured, kept on disk by everything that made it, so that nothing is ever measured twice."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from surgeon.backend.digests import contents_digest
from surgeon.core.checkpoint.atomic_files import write_bytes
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.plan.draft import Layer

_VERSION = 5
"""Raised whenever the mathematics of a score changes."""
MOST_BYTES = 200_000_000

Value = TypeVar("Value")


def made_of_layer(layer: Layer) -> tuple[Any, ...]:
    """Name what a layer computes with: its weights and, where it has any, its adapters."""
    return (layer.source, sorted(layer.lora.items())) if layer.lora else (layer.source,)


class ScoreCache:
    """What was measured on one checkpoint. A file that cannot be read is as good as none."""

    def __init__(self, *checkpoints: Checkpoint) -> None:
        """Name the checkpoints that weights come from by all of their bytes."""
        self._files = FileStamps(*checkpoints)
        self._root = cache_directory() / "scores"
        self._content = contents_digest(checkpoints)

    def _path(self, made_of: tuple[Any, ...]) -> Path:
        key = hashlib.sha256(msgspec.json.encode((_VERSION, self._content, made_of), order="deterministic")).hexdigest()
        return self._root / key[:2] / f"{key[2:]}.msgpack"

    def get(self, kind: type[Value], *made_of: Any) -> Value | None:
        """Return what was kept under exactly this."""
        path = self._path(made_of)
        try:
            value = msgspec.msgpack.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # what is used stays longest
        return value

    def put(self, value: Any, *made_of: Any) -> None:
        """Keep a value under everything that made it. A full disk is no reason to lose a measurement."""
        with contextlib.suppress(OSError):
            write_bytes(self._path(made_of), msgspec.msgpack.encode(value))

    def check(self) -> None:
        """Refuse to keep what is measured on a checkpoint that has changed since it was named.

        Raises:
            CheckpointError: it has changed or vanished.
        """
        self._files.check()

    def trim(self, most_bytes: int = MOST_BYTES) -> None:
        """Drop what has not been used for longest until the scores of all checkpoints take at most that much."""
        with contextlib.suppress(OSError):  # a directory that is read-only, or no directory, is not worth a failure
            self._trim(most_bytes)

    def _trim(self, most_bytes: int) -> None:
        files = []
        for path in self._root.glob("*/*"):
            with contextlib.suppress(OSError):  # another process trims too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in files) - most_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
