"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from surgeon.core.checkpoint.file_system import sync
from surgeon.errors import RecipeError


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        import tempfile  # late: who only reads has no use for it

        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                sync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecipeError(f"cannot be written: {error.strerror}", where=str(path)) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it: of two writers one wins, and a reader never sees half.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    import tempfile  # late: who only reads has no use for it

    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
