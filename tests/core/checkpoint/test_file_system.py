"""What a file system lacks is passed over; what goes wrong on it is not."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from surgeon.core.checkpoint.atomic_files import write_text
from surgeon.core.checkpoint.file_system import Lock, sync, sync_path, try_lock
from tests.faults import NO_DIRECTORY_SYNC, NO_LOCKS, NO_SYNC, failing_sync, fault, without_locks


def test_a_lock_is_ours_or_taken(tmp_path: Path) -> None:
    handles = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    assert [try_lock(handle) for handle in handles] == [Lock.OURS, Lock.TAKEN]
    os.close(handles[0])
    assert try_lock(handles[1]) is Lock.OURS
    os.close(handles[1])


@pytest.mark.parametrize("code", NO_LOCKS)
def test_where_there_are_no_locks_that_is_told(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, code)
    handle = os.open(tmp_path, os.O_RDONLY)
    assert try_lock(handle) is Lock.UNSUPPORTED
    os.close(handle)


def test_a_disk_that_fails_is_not_one_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, operation: int) -> None:
        raise fault(errno.EIO)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        try_lock(0)


@pytest.mark.parametrize("code", NO_DIRECTORY_SYNC)
def test_directories_need_not_be_synced(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = failing_sync(monkeypatch, code, directories=True)
    sync_path(tmp_path)
    assert failed


@pytest.mark.parametrize("code", NO_SYNC)
def test_files_need_not_be_synced_where_the_file_system_has_no_sync(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing_sync(monkeypatch, code, directories=False)
    write_text(tmp_path / "r.yaml", "text")
    sync_path(tmp_path / "r.yaml")
    assert (tmp_path / "r.yaml").read_text() == "text"
    assert len(failed) == 2


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("directories", [True, False])
def test_a_sync_that_tells_of_lost_data_is_an_error(
    code: int, directories: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    failing_sync(monkeypatch, code, directories=directories)
    with pytest.raises(OSError, match=os.strerror(code)):
        sync_path(tmp_path if directories else tmp_path / "file")
    if not directories:
        with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match=os.strerror(code)):
            sync(file.fileno())
