"""A base that vanishes or changes while it is read is named."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.errors import Cancelled, CheckpointError, GateError
from tests.export.handmade_shards import write_llama
from tests.faults import failing

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_llama(tmp_path / "base", shards=3))


def vanish(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def rewrite(path: Path) -> None:
    """Write other bytes of the same number."""
    old = path.stat()
    path.write_bytes(bytes(old.st_size))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))


def replace(path: Path) -> None:
    """Put another file in its place, as a download does."""
    new = path.with_name("new")
    new.write_bytes(b"other")
    new.replace(path)


@pytest.mark.parametrize("change", [vanish, grow, rewrite, replace])
@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_every_change_is_noticed(checkpoint: Checkpoint, change: Callable[[Path], None], name: str) -> None:
    stamps = FileStamps(checkpoint)
    stamps.check()
    change(checkpoint.path / name)
    with pytest.raises(CheckpointError, match="any more" if change is vanish else "was changed") as caught:
        stamps.check()
    assert caught.value.where == str(checkpoint.path / name)
    assert caught.value.hint


def test_reading_and_other_files_are_no_change(checkpoint: Checkpoint) -> None:
    with FileStamps(checkpoint).watched():
        (checkpoint.path / SHARD).read_bytes()
        (checkpoint.path / "notes.txt").write_text("mine")


@pytest.mark.parametrize("failure", [ValueError("odd"), GateError("perplexity is 9"), KeyError("x"), None])
def test_a_failure_is_put_down_to_the_change_and_so_is_a_success(
    checkpoint: Checkpoint, failure: Exception | None
) -> None:
    with pytest.raises(CheckpointError, match="was changed"), FileStamps(checkpoint).watched():
        grow(checkpoint.path / SHARD)
        if failure is not None:
            raise failure


@pytest.mark.parametrize("failure", [ValueError("odd"), GateError("perplexity is 9")])
def test_a_failure_of_its_own_stays_what_it_is(checkpoint: Checkpoint, failure: Exception) -> None:
    with pytest.raises(type(failure)), FileStamps(checkpoint).watched():
        raise failure


def test_a_cancel_stays_a_cancel(checkpoint: Checkpoint) -> None:
    with pytest.raises(Cancelled), FileStamps(checkpoint).watched():
        grow(checkpoint.path / SHARD)
        raise Cancelled


def test_a_stale_handle_of_a_network_file_system_is_told_by_name(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = FileStamps(checkpoint)
    failing(monkeypatch, "stat", errno.ESTALE, lambda path, *_: str(path).endswith(SHARD))
    with pytest.raises(CheckpointError, match=r"any more: Stale file handle") as caught:
        stamps.check()
    assert caught.value.where.endswith(SHARD)
