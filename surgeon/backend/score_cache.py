"""Scores by the content that made them, on disk, so that none is ever measured twice."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import msgspec

from surgeon.core.checkpoint import Checkpoint
from surgeon.core.locate import cache_directory
from surgeon.core.score import Provenance, Score

_VERSION = 1
"""Raised whenever the mathematics of a score changes."""


class ScoreCache:
    """The scores of one checkpoint. A file that cannot be read is as good as none."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Name the checkpoint by all of its bytes."""
        self._root = cache_directory() / "scores"
        self._content = content_digest(checkpoint)

    def _path(self, name: str, provenance: Provenance) -> Path:
        made_of = msgspec.json.encode((_VERSION, self._content, name, provenance), order="sorted")
        key = hashlib.sha256(made_of).hexdigest()
        return self._root / key[:2] / f"{key[2:]}.json"

    def get(self, name: str, provenance: Provenance) -> Score | None:
        """Return a score with exactly this provenance."""
        try:
            return msgspec.json.decode(self._path(name, provenance).read_bytes(), type=Score)
        except (OSError, msgspec.MsgspecError):
            return None

    def put(self, score: Score) -> None:
        """Keep a score."""
        path = self._path(score.name, score.provenance)
        _write(path, msgspec.json.encode(score))


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
            _write(note, digest.encode())
        whole.update(digest.encode())
    return whole.hexdigest()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(name).replace(path)
