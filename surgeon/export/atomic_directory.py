"""Puts a directory in its place all at once: written as `OUT.partial`, then renamed. Never overwrites.

Whoever looks sees nothing or all of it. A directory left by a killed run is recognised by a file in it, and emptied.
Where the file system has no locks, nobody can tell whether such a directory is in use: then each run has one of its
own.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from surgeon.core.checkpoint.file_system import Lock, sync_path, try_lock
from surgeon.errors import ExportError

_SPARE_BYTES = 16 * 2**20
Warn = Callable[[str], None]
_MARK = ".being-written-by-surgeon"


def refuse_existing(out: Path) -> None:
    """Refuse a target that is already there.

    Raises:
        ExportError: there is something at `out`.
    """
    if os.path.lexists(out):
        raise ExportError(
            "already exists",
            where=str(out),
            allowed="a new directory: nothing is ever overwritten",
            hint="choose another name, or remove it first",
        )


def require_space(out: Path, wanted_bytes: int) -> None:
    """Refuse to start what will not fit.

    Raises:
        ExportError: the file system has less free space than `wanted_bytes`.
    """
    parent = next(place for place in (out, *out.parents) if os.path.exists(place))  # noqa: PTH110 - a name too long is no error here
    try:
        total, _, free = shutil.disk_usage(parent)
    except OSError:  # the file system does not tell
        return
    if total and free < wanted_bytes + _SPARE_BYTES:  # some say 0 of 0
        raise ExportError(
            f"needs {wanted_bytes / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free",
            where=str(parent),
            hint="free some space, or export to another disk",
        )


def refuse_inside(out: Path, base: Path) -> None:
    """Refuse a target within the directory of the model it is made from, which is only read.

    Raises:
        ExportError: `out` lies inside `base`.
    """
    if out.resolve().is_relative_to(base.resolve()):
        raise ExportError(
            "lies inside the directory of the base model",
            where=str(out),
            allowed="a directory elsewhere: the base is only read",
            hint="choose another place",
        )


@contextmanager
def written_atomically(out: Path, warn: Warn = lambda _: None) -> Iterator[Path]:
    """Yield a directory that holds nothing but a mark; on success it becomes `out`, on any error it is removed.

    `warn` is told what a person has to know of the file system.

    Raises:
        ExportError: `out` exists, another process is writing it, or the file system refuses.
    """
    try:
        refuse_existing(out)
        partial = out.with_name(out.name + ".partial")
        made = _make_parents(out)
        handle: int | None = None
        try:
            handle = _claim(partial)
            if handle is None:
                partial, handle = _claim_own(partial)
                warn(f"{out.parent} has no locks: a run that is killed here leaves {partial.name} behind")
            refuse_existing(out)
            yield partial
            _sync_tree(partial)
            refuse_existing(out)
            # The mark goes last: without it a run that was killed here would leave what nobody dares to empty.
            partial.rename(out)
            (out / _MARK).unlink()
            sync_path(out)
            sync_path(out.parent)
        except BaseException:
            if handle is not None:
                shutil.rmtree(partial, ignore_errors=True)
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()
            raise
        finally:
            if handle is not None:
                os.close(handle)
    except OSError as error:
        raise _explain(error, out) from error


def _make_parents(out: Path) -> list[Path]:
    """Make the directories above `out` that are missing; return them, the deepest first."""
    missing = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _claim(partial: Path) -> int | None:
    """Lock `partial`, mark it as ours and empty it; return the handle that holds the lock, None without locks."""
    while True:
        partial.mkdir(exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            lock = try_lock(handle)
            if lock is Lock.TAKEN:
                raise ExportError(
                    "is being written by another process",
                    where=str(partial),
                    hint="wait for it, or choose another name",
                )
            # Whoever held the lock may have renamed or removed this very directory in between.
            if lock is Lock.OURS and _is_at(handle, partial):
                _empty(partial)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if lock is Lock.UNSUPPORTED:
            with suppress(OSError):  # it is not empty: what a killed run left, or someone else's
                partial.rmdir()
            return None


def _claim_own(partial: Path) -> tuple[Path, int]:
    """Make and mark a directory that nobody else has; return it and an open handle."""
    own = partial.with_name(f"{partial.name}-{uuid4().hex[:8]}")
    own.mkdir()
    _empty(own)
    return own, os.open(own, os.O_RDONLY | os.O_DIRECTORY)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _empty(partial: Path) -> None:
    found = sorted(partial.iterdir())
    mark = partial / _MARK
    if found and mark not in found:
        raise ExportError(
            f"holds {found[0].name}, and is not what an interrupted run of surgeon left",
            where=str(partial),
            hint="move it elsewhere, or choose another name",
        )
    mark.touch()
    for file in found:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file != mark:
            file.unlink()


def _sync_tree(directory: Path) -> None:
    for place, _, names in os.walk(directory):
        for name in names:
            sync_path(Path(place, name))
        sync_path(Path(place))


def _explain(error: OSError, out: Path) -> ExportError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and os.path.lexists(out):  # another was faster
        return ExportError("already exists", where=str(out), hint="choose another name, or remove it first")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExportError(
            "the disk is full; what was written has been removed",
            where=str(out.parent),
            hint="free some space and run it again",
        )
    return ExportError(
        f"cannot be written: {error.strerror or error}",
        where=str(error.filename or out),
        hint="check the path and its permissions",
    )
