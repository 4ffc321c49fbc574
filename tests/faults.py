"""File systems that lack something, and disks that fail: faults injected where Python calls the system."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EINVAL)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
NO_DIRECTORY_SYNC = (*NO_SYNC, errno.EACCES, errno.EBADF, errno.EISDIR)


def fault(code: int, name: Path | None = None) -> OSError:
    return OSError(code, os.strerror(code)) if name is None else OSError(code, os.strerror(code), str(name))


def without_locks(patch: pytest.MonkeyPatch, code: int = errno.ENOSYS) -> None:
    """Mount everything as Lustre is without `flock`."""

    def flock(handle: int, operation: int) -> None:
        os.fstat(handle)
        raise fault(code)

    patch.setattr(fcntl, "flock", flock)


def failing_sync(patch: pytest.MonkeyPatch, code: int, *, directories: bool) -> list[int]:
    """Let every sync of directories, or of files, fail; return the list that failures are counted in."""
    real, failed = os.fsync, list[int]()

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == directories:
            failed.append(code)
            raise fault(code)
        real(handle)

    patch.setattr(os, "fsync", fsync)
    return failed


def failing(patch: pytest.MonkeyPatch, name: str, code: int, when: Callable[..., bool] = lambda *_: True) -> None:
    """Let a function of `os` fail when its arguments say so."""
    real: Callable[..., Any] = getattr(os, name)

    def call(*args: Any, **more: Any) -> Any:
        if when(*args):
            raise fault(code)
        return real(*args, **more)

    patch.setattr(os, name, call)


def file_of(handle: int) -> Path:
    """Return the file that is open as a handle."""
    return Path(f"/proc/self/fd/{handle}").readlink()


def blocked(place: Path) -> Path:
    """Put a file where a directory should be, which stops root too."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("in the way")
    return place
