"""Writing back early: in the background, never instead of the sync at the end, and no fault is lost."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from surgeon.export import background_flush
from surgeon.export.background_flush import flush_in_background


def test_every_stride_is_sent_off_while_the_next_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, on the same file, and it is over when the context ends."""
    seen: list[tuple[bool, int]] = []
    begun = threading.Event()

    def sync(handle: int) -> None:
        seen.append((threading.current_thread() is threading.main_thread(), handle))
        begun.set()

    monkeypatch.setattr(background_flush, "_STRIDE_BYTES", 100)
    monkeypatch.setattr(os, "fsync", sync)
    before = threading.active_count()
    with (tmp_path / "out").open("wb") as file, flush_in_background(file.fileno()) as tell:
        tell(99)
        assert not seen
        tell(1)
        assert begun.wait(10)
        assert seen == [(False, file.fileno())]
    assert threading.active_count() == before


def test_a_fault_of_the_disk_found_early_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux tells a failed write-back to one sync only: swallowed here, the last one would succeed."""
    told = threading.Event()

    def fail(_handle: int) -> None:
        told.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(background_flush, "_STRIDE_BYTES", 1)
    monkeypatch.setattr(os, "fsync", fail)
    with (
        (tmp_path / "out").open("wb") as file,
        pytest.raises(OSError, match="Input/output"),
        flush_in_background(file.fileno()) as tell,
    ):
        tell(1)
        assert told.wait(10)


def test_an_error_of_the_writer_comes_through(tmp_path: Path) -> None:
    """And the thread ends."""
    before = threading.active_count()
    with (tmp_path / "out").open("wb") as file, pytest.raises(KeyError), flush_in_background(file.fileno()):
        raise KeyError
    assert threading.active_count() == before
