"""What has been measured, kept on disk by everything that made it, so that nothing is ever measured twice."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.locating import cache_directory

_VERSION = 4
"""Raised whenever the mathematics of a score changes."""
MOST_BYTES = 200_000_000

Value = TypeVar("Value")


class ScoreCache:
    """What was measured on one checkpoint. A file that cannot be read is as good as none."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Name the checkpoint by all of its bytes."""
        self._root = cache_directory() / "scores"
        self._content = content_digest(checkpoint)

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
            _write(self._path(made_of), msgspec.msgpack.encode(value))

    def trim(self, most_bytes: int = MOST_BYTES) -> None:
        """Drop what has not been used for longest until the scores of all checkpoints take at most that much."""
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


def content_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of every byte of the config and the shards, remembered by each shard's size and time."""
    whole = hashlib.sha256(msgspec.json.encode(dict(checkpoint.config)))
    for shard in sorted({tensor.shard for tensor in checkpoint.tensors.values()}):
        status = shard.stat()
        known_as = f"{shard.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
        note = cache_directory() / "digests" / hashlib.sha256(known_as.encode()).hexdigest()
        try:
            digest = note.read_text()
        except OSError:
            with shard.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with contextlib.suppress(OSError):
                _write(note, digest.encode())
        whole.update(digest.encode())
    return whole.hexdigest()


def side_digest(checkpoint: Checkpoint, *, answering: bool = False) -> str:
    """Return a digest of the files beside the weights that may change how text becomes tokens.

    With `answering` also of what may change when an answer ends. All that is not known to be about something else.
    """
    whole = hashlib.sha256()
    for name in sorted(checkpoint.side_files):
        read_by_people = name.endswith(_PROSE) or name.upper().startswith(_PAPERS)
        if not read_by_people and (answering or name != "generation_config.json"):
            whole.update(f"{name}\0{hashlib.sha256((checkpoint.path / name).read_bytes()).hexdigest()}\0".encode())
    return whole.hexdigest()


_PROSE = (".md", ".pdf", ".png", ".jpg", ".svg", ".gitattributes", ".gitignore")
_PAPERS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "README", "USE_POLICY")


def _write(path: Path, data: bytes) -> None:
    """Write beside it and rename: of two writers one wins, and a reader never sees half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
