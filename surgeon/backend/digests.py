"""Digests that name a checkpoint's weights, its side files, and plain data."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.atomic_files import write_bytes
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.file_stamps import unreadable
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.checkpoint.side_files import module_folders

_SHA256 = re.compile("[0-9a-f]{64}")
_PROSE = (".md", ".pdf", ".png", ".jpg", ".svg", ".gitattributes", ".gitignore")
_PAPERS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "README", "USE_POLICY")


def content_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of every byte of the config and the shards, remembered by each shard's size and time.

    Raises:
        CheckpointError: a shard cannot be read any more.
    """
    whole = hashlib.sha256(msgspec.json.encode(dict(checkpoint.config)))
    for shard in sorted({tensor.shard for tensor in checkpoint.tensors.values()}):
        try:
            status = shard.stat()
        except OSError as error:
            raise unreadable(shard, error) from error
        known_as = f"{shard.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
        note = cache_directory() / "digests" / hashlib.sha256(known_as.encode()).hexdigest()
        digest = _noted(note)
        if digest is None:
            digest = _digest(shard)
            with contextlib.suppress(OSError):
                write_bytes(note, digest.encode())
        whole.update(digest.encode())
    return whole.hexdigest()


def contents_digest(checkpoints: Sequence[Checkpoint]) -> str:
    """Return the digest of a checkpoint, or of several that weights come from; that of one alone is its own."""
    first, *others = map(content_digest, checkpoints)
    return hashlib.sha256("".join((first, *others)).encode()).hexdigest() if others else first


def _digest(shard: Path) -> str:
    try:
        with shard.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(shard, error) from error


def _noted(note: Path) -> str | None:
    """Return the digest in a note; None where there is none, or what a crash or a full disk has left of one."""
    try:
        text = note.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return text if _SHA256.fullmatch(text) else None


def side_digest(checkpoint: Checkpoint, *, answering: bool = False) -> str:
    """Return a digest of the files beside the weights that may change how text becomes tokens.

    With `answering` also of what may change when an answer ends. All that is not known to be about something else.
    """
    whole = hashlib.sha256()
    folders = tuple(f"{folder}/" for folder, _ in module_folders(checkpoint.path))
    for name in sorted(name for name in checkpoint.side_files if not folders or not name.startswith(folders)):
        read_by_people = name.endswith(_PROSE) or name.upper().startswith(_PAPERS)
        if not read_by_people and (answering or name != "generation_config.json"):
            whole.update(f"{name}\0{hashlib.sha256((checkpoint.path / name).read_bytes()).hexdigest()}\0".encode())
    return whole.hexdigest()


def digest_of(plain: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return sixteen hex digits that name plain data."""
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:16]
