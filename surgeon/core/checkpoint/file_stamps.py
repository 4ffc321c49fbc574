"""Notices that a checkpoint vanishes or changes while it is read, and names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.errors import Cancelled, CheckpointError

_HINT = "leave it alone while it is read, and run this again"
_Stamp = tuple[int, int]
"""Size and time of the last change. No inode: some network file systems give a file another one after a while."""


class FileStamps:
    """What config and shards of checkpoints looked like when this was made."""

    def __init__(self, *checkpoints: Checkpoint) -> None:
        """Look at them.

        Raises:
            CheckpointError: one is not there.
        """
        self._stamps: dict[Path, _Stamp] = {}
        self.add(*checkpoints)

    def add(self, *checkpoints: Checkpoint) -> None:
        """Look at more of them; those that are known already stay as they were.

        Raises:
            CheckpointError: one is not there.
        """
        for checkpoint in checkpoints:
            for path in (checkpoint.path / "config.json", *sorted(shard.path for shard in checkpoint.shards)):
                if path not in self._stamps:
                    self._stamps[path] = _stamp(path)

    def check(self) -> None:
        """Look at them again.

        Raises:
            CheckpointError: one has vanished or changed.
        """
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                raise CheckpointError("was changed while it was read", where=str(path), hint=_HINT)

    @contextmanager
    def watched(self) -> Iterator[FileStamps]:
        """Look at them again at the end; a failure meanwhile is put down to what has happened to them.

        Raises:
            CheckpointError: one has vanished or changed.
        """
        try:
            yield self
        except Cancelled:
            raise
        except Exception as error:
            try:
                self.check()
            except CheckpointError as cause:
                raise cause from error
            raise
        self.check()


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return what to raise where a file that was there cannot be read."""
    return CheckpointError(f"cannot be read any more: {error.strerror or error}", where=str(path), hint=_HINT)


def shortened(path: Path) -> CheckpointError:
    """Return what to raise where a file ends before it should."""
    return CheckpointError("became shorter while it was read", where=str(path), hint=_HINT)
