from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.journal import Entry, Journal
from surgeon.errors import SurgeonError
from tests.faults import NO_LOCKS, blocked, failing, without_locks

entries = st.lists(
    st.builds(
        Entry,
        model=st.text(max_size=8),
        steps=st.lists(
            st.fixed_dictionaries({"prune": st.fixed_dictionaries({"layers": st.text(max_size=8)})}), max_size=3
        ),
        position=st.integers(0, 3),
        recipe_digest=st.text("0123456789abcdef", max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def reopened(path: Path) -> Entry | None:
    journal = Journal(path)
    entry = journal.last()
    journal.close(keep=True)
    return entry


@settings(deadline=None, max_examples=60)
@given(written=entries, data=st.data())
def test_a_kill_at_any_byte_of_the_last_line_loses_at_most_that_line(
    tmp_path_factory: pytest.TempPathFactory, written: list[Entry], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "r.journal"
    journal = Journal(path)
    for entry in written[:-1]:
        journal.append(entry)
    before = path.stat().st_size
    journal.append(written[-1])
    journal.close(keep=True)
    whole = path.read_bytes()
    cut = data.draw(st.integers(before, len(whole)))
    path.write_bytes(whole[:cut])
    expected = written[-2] if len(written) > 1 else None
    assert reopened(path) == (written[-1] if whole[:cut].rstrip(b"\n") == whole.rstrip(b"\n") else expected)


@settings(deadline=None, max_examples=60)
@given(torn=entries, cut=st.integers(1, 20), after=entries)
def test_a_torn_line_does_not_swallow_the_next_one(
    tmp_path_factory: pytest.TempPathFactory, torn: list[Entry], cut: int, after: list[Entry]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "r.journal"
    journal = Journal(path)
    journal.append(torn[0])
    path.write_bytes(path.read_bytes()[:-cut])
    for entry in after:
        journal.append(entry)
    assert journal.last() == after[-1]
    journal.close(keep=False)


def entry(position: int) -> Entry:
    return Entry(model="m", steps=[], position=position)


def test_two_live_sessions_do_not_share_a_journal(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "r.journal"), Journal(tmp_path / "r.journal")
    assert first.path != second.path
    first.append(entry(1))
    second.append(entry(2))
    assert (first.last(), second.last()) == (entry(1), entry(2))
    first.close(keep=False)
    second.close(keep=False)
    assert not list(tmp_path.iterdir())


def test_what_a_dead_second_session_left_is_found_by_the_next(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "r.journal"), Journal(tmp_path / "r.journal")
    second.append(entry(2))
    second.close(keep=True)
    third = Journal(tmp_path / "r.journal")
    assert third.last() == entry(2)
    for journal in (first, third):
        journal.close(keep=False)


def test_a_journal_removed_while_we_wait_for_its_lock_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session ends, and removes its journal, between our opening the file and locking it."""
    import fcntl

    path, real = tmp_path / "r.journal", fcntl.flock
    removals = [path]

    def flock(handle: int, how: int) -> None:
        while removals:
            removals.pop().unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    journal = Journal(path)
    journal.append(entry(1))
    journal.close(keep=True)
    assert reopened(path) == entry(1)


def test_clearing_forgets_and_a_closed_journal_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "r.journal")
    journal.append(entry(1))
    journal.clear()
    assert journal.last() is None
    journal.append(entry(2))
    assert journal.last() == entry(2)
    journal.close(keep=False)
    assert not journal.path.exists()


def test_a_killed_process_leaves_its_last_step(tmp_path: Path) -> None:
    path = tmp_path / "r.journal"
    code = (
        "import os, signal; from pathlib import Path; from surgeon.core.journal import Entry, Journal\n"
        f"journal = Journal(Path({str(path)!r})); journal.append(Entry(model='m', steps=[], position=7))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert reopened(path) == entry(7)


def test_too_many_sessions_are_refused_in_words(tmp_path: Path) -> None:
    journals = [Journal(tmp_path / "r.journal") for _ in range(99)]
    with pytest.raises(SurgeonError, match="all journals are held"):
        Journal(tmp_path / "r.journal")
    for journal in journals:
        journal.close(keep=False)


@pytest.mark.parametrize("code", NO_LOCKS)
def test_without_locks_a_journal_is_kept_and_says_what_that_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    without_locks(monkeypatch, code)
    journal = Journal(tmp_path / "r.journal")
    assert journal.fault == f"{tmp_path} has no locks: a second session on the same would write to {journal.path} too"
    journal.append(entry(1))
    journal.close(keep=True)
    assert reopened(tmp_path / "r.journal") == entry(1)


def test_a_journal_that_cannot_be_kept_stops_nobody(tmp_path: Path) -> None:
    place = blocked(tmp_path / "state")
    journal = Journal(place / "journals" / "r.journal")
    assert "a crash would lose the steps" in journal.fault
    assert str(place) in journal.fault
    journal.append(entry(1))
    assert journal.last() is None
    journal.clear()
    journal.close(keep=True)


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_told_and_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """The next entry may succeed, and then all is well: each is the whole state."""
    with pytest.MonkeyPatch.context() as patch:
        if call == "open":
            failing(patch, call, code, lambda path, *_: str(path).endswith(".journal"))
        journal = Journal(tmp_path / "r.journal")
        if call != "open":
            failing(patch, call, code)
            journal.append(entry(1))
        assert os.strerror(code) in journal.fault
        if call == "open":
            journal.close(keep=True)
            return
    journal.append(entry(2))
    assert journal.fault == ""
    assert journal.last() == entry(2)
    journal.close(keep=False)


def test_what_is_written_in_part_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, real = Journal(tmp_path / "r.journal"), os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:5])))
    journal.append(entry(1))
    assert journal.last() == entry(1)
    journal.close(keep=False)
