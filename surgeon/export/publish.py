"""Puts a directory in its place all at once: written as `OUT.partial`, then renamed. Never overwrites.

Whoever looks sees nothing or all of it. A directory left by a killed run is recognised and removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import ExportError

_SPARE_BYTES = 16 * 2**20


def refuse_existing(out: Path) -> None:
    """Refuse a target that is already there.

    Raises:
        ExportError: there is something at `out`.
    """
    if out.exists() or out.is_symlink():
        raise ExportError("already exists", where=str(out), allowed="a new directory: nothing is ever overwritten",
                          hint="choose another name, or remove it first")  # fmt: skip


def require_space(out: Path, wanted_bytes: int) -> None:
    """Refuse to start what will not fit.

    Raises:
        ExportError: the file system has less free space than `wanted_bytes`.
    """
    parent = next(place for place in (out, *out.parents) if place.exists())
    free = shutil.disk_usage(parent).free
    if free < wanted_bytes + _SPARE_BYTES:
        raise ExportError(
            f"needs {wanted_bytes / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free", where=str(parent),
            hint="free some space, or export to another disk",
        )


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Yield an empty directory; on success it becomes `out`, on any error it is removed.

    Raises:
        ExportError: `out` exists, another process is writing it, or the file system refuses.
    """
    refuse_existing(out)
    partial = out.with_name(out.name + ".partial")
    try:
        handle = _claim(partial)
        try:
            yield partial
            for file in partial.iterdir():
                _sync(file)
            _sync(partial)
            refuse_existing(out)
            partial.rename(out)
            _sync(out.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            os.close(handle)
    except OSError as error:
        raise _explain(error, out) from error


def _claim(partial: Path) -> int:
    partial.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial.mkdir(exist_ok=True)
        handle = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ExportError("is being written by another process", where=str(partial), hint="wait for it, or choose another name") from None
        if not any(partial.iterdir()):
            return handle
        # Locked by nobody but not empty: what a killed run left.
        shutil.rmtree(partial)
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, out: Path) -> ExportError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExportError("the disk is full; what was written has been removed", where=str(out.parent), hint="free some space and run it again")
    return ExportError(f"cannot be written: {error.strerror or error}", where=error.filename or str(out), hint="check the path and its permissions")
