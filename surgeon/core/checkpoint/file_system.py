"""What not every file system has: locks (Lustre mounted without `flock`, NFS on directories), syncing of directories.

Where there are no locks, work goes on, and whoever asked for one says what that means. A lock file would be worse: of a
job that a cluster has killed, perhaps on another machine, nobody can tell whether its lock file is stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
from enum import Enum, auto
from pathlib import Path

# A lock on NFS needs an open for writing, which a directory cannot have: EBADF.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_DIRECTORY_SYNC = (*_NO_SYNC, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)


class Lock(Enum):
    """What came of trying to lock: it is ours, another process has it, or this file system has no locks."""

    OURS = auto()
    TAKEN = auto()
    UNSUPPORTED = auto()


def try_lock(handle: int) -> Lock:
    """Lock an open file or directory for as long as it is open, without waiting.

    Raises:
        OSError: it fails in another way.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return Lock.UNSUPPORTED
    return Lock.OURS


def sync(handle: int) -> None:
    """Wait until an open file is on disk, where the file system can tell.

    Raises:
        OSError: it could not be written.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_path(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk, where the file system can tell.

    Raises:
        OSError: it could not be written.
    """
    if not path.is_dir():
        handle = os.open(path, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
