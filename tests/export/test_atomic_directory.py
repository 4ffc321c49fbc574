"""Nothing or all of it: what a directory looks like before, during and after it is written."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgeon.errors import ExportError
from surgeon.export.atomic_directory import refuse_existing, require_space, written_atomically
from tests.export.replaying import names_in
from tests.faults import NO_DIRECTORY_SYNC, NO_LOCKS, failing_sync, fault, without_locks


def test_a_directory_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    """Until then there is OUT.partial, and afterwards OUT alone, without a trace of how it was made."""
    out = tmp_path / "deep" / "out"
    with written_atomically(out) as directory:
        (directory / "a").write_text("a")
        (directory / "sub").mkdir()
        (directory / "sub" / "b").write_text("b")
        assert not out.exists()
        assert directory == out.with_name("out.partial")
    assert names_in(out) == ["a", "sub"]
    assert names_in(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
def test_any_error_leaves_nothing_not_even_a_parent(error: BaseException, tmp_path: Path) -> None:
    """Directories made on the way go too; those that were there stay."""
    with pytest.raises((type(error), ExportError)), written_atomically(tmp_path / "new" / "deep" / "out") as directory:
        (directory / "a").write_text("a")
        raise error
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_a_target_that_exists_is_never_touched(kind: str, tmp_path: Path) -> None:
    """Whatever it is."""
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "directory":
        out.mkdir()
    else:
        (tmp_path / "there").mkdir()
        out.symlink_to(tmp_path / ("there" if kind == "link" else "gone"))
    before = names_in(tmp_path)
    with pytest.raises(ExportError, match="already exists"), written_atomically(out):
        pass
    assert names_in(tmp_path) == before


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """The check is made again before the rename."""
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="already exists"), written_atomically(out):
        out.mkdir()
        (out / "precious").write_text("mine")
    assert names_in(tmp_path) == ["out"]
    assert names_in(out) == ["precious"]


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    """It is recognised by the mark in it and emptied, folders too."""
    left = tmp_path / "out.partial"
    with written_atomically(tmp_path / "out") as directory:
        mark = names_in(directory)
    left.mkdir()
    for name in mark:
        (left / name).touch()
    (left / "model.safetensors").write_text("half")
    (left / "adapter").mkdir()
    (left / "adapter" / "x").touch()
    shutil.rmtree(tmp_path / "out")
    with written_atomically(tmp_path / "out") as directory:
        assert names_in(directory) == mark
    assert names_in(tmp_path) == ["out"]


def test_somebody_elses_partial_directory_is_not_removed(tmp_path: Path) -> None:
    """A name is no proof: without the mark it belongs to someone else."""
    other = tmp_path / "out.partial"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"thesis\.tex") as caught, written_atomically(tmp_path / "out"):
        pass
    assert caught.value.hint
    assert (other / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_partial_that_is_no_directory_is_refused(kind: str, tmp_path: Path) -> None:
    """A file or a link of that name is not followed and not removed."""
    partial, elsewhere = tmp_path / "out.partial", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "file":
        partial.write_text("mine")
    else:
        partial.symlink_to(elsewhere)
    before = names_in(tmp_path)
    with pytest.raises(ExportError, match="cannot be written"), written_atomically(tmp_path / "out"):
        pass
    assert names_in(tmp_path) == before
    assert names_in(elsewhere) == []


def test_two_processes_never_write_the_same_target(tmp_path: Path) -> None:
    """The second is told so at once, and the first is not disturbed."""
    code = (
        "import sys; from pathlib import Path; from surgeon.export.atomic_directory import written_atomically\n"
        f"with written_atomically(Path({str(tmp_path / 'out')!r})) as d:\n"
        "    (d / 'first').touch(); print('in', flush=True); sys.stdin.readline()\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "in\n"
    with pytest.raises(ExportError, match="by another process"), written_atomically(tmp_path / "out"):
        pass
    first.communicate("\n")
    assert first.returncode == 0
    assert names_in(tmp_path / "out") == ["first"]


@pytest.mark.parametrize("locks", [True, False])
def test_many_processes_at_once_leave_one_whole_directory(tmp_path: Path, locks: bool) -> None:
    """Whoever wins writes all of it; the others are refused; nothing is left beside it. Without locks too."""
    code = (
        "import sys; from pathlib import Path; from surgeon.export.atomic_directory import written_atomically\n"
        "from surgeon.errors import ExportError\n"
        "import pytest; from tests.faults import without_locks\n"
        f"{'' if locks else 'without_locks(pytest.MonkeyPatch())'}\n"
        "sys.stdin.readline()\n"
        "try:\n"
        f"    with written_atomically(Path({str(tmp_path / 'out')!r})) as d:\n"
        "        for n in range(200): (d / str(n)).write_text(sys.argv[1])\n"
        "except ExportError: sys.exit(7)\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdin=subprocess.PIPE, text=True) for n in range(6)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    codes = [racer.wait() for racer in racers]
    for racer in racers:
        racer.communicate()
    winner = str(codes.index(0))
    assert sorted(codes) == [0, 7, 7, 7, 7, 7]
    assert names_in(tmp_path) == ["out"]
    assert {(tmp_path / "out" / str(n)).read_text() for n in range(200)} == {winner}


def test_a_directory_renamed_under_the_lock_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process published between our open and our lock: its directory must stay as it is."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    real = fcntl.flock

    def publish_first(handle: int, operation: int) -> None:
        if not out.exists():
            (partial / "theirs").touch()
            partial.rename(out)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", publish_first)
    with pytest.raises(ExportError, match="already exists"), written_atomically(out):
        pass
    assert names_in(out) == ["theirs"]
    assert names_in(tmp_path) == ["out"]


def test_a_full_disk_is_told_before_writing_where_it_can_be(tmp_path: Path) -> None:
    """The message says how much is wanted, how much there is, and where."""
    with pytest.raises(ExportError, match=r"needs 1000000000\.00 GB, but only") as caught:
        require_space(tmp_path / "not" / "there", 10**18)
    assert caught.value.where == str(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("code", NO_LOCKS)
def test_without_locks_each_run_has_a_directory_of_its_own(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told; what another run is writing at the same time is not touched, and neither is what one has left."""
    without_locks(monkeypatch, code)
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / ".being-written-by-surgeon").touch()
    said: list[str] = []
    with written_atomically(tmp_path / "out", said.append) as directory:
        assert directory.name.startswith("out.partial-")
        (directory / "mine").touch()
        with pytest.raises(ValueError, match="x"), written_atomically(tmp_path / "out") as other:
            assert other != directory
            raise ValueError("x")
    assert names_in(tmp_path) == ["out", "out.partial"]
    assert names_in(tmp_path / "out") == ["mine"]
    assert said == [f"{tmp_path} has no locks: a run that is killed here leaves {directory.name} behind"]


def test_without_locks_the_slower_of_two_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the other comes between the last look and the rename."""
    without_locks(monkeypatch)
    out, real = tmp_path / "out", Path.rename

    def rename(self: Path, target: Path) -> Path:
        (out / "theirs").mkdir(parents=True)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ExportError, match="already exists"), written_atomically(out) as directory:
        (directory / "mine").touch()
    assert names_in(out) == ["theirs"]
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("code", NO_DIRECTORY_SYNC)
def test_directories_that_cannot_be_synced_stop_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing_sync(monkeypatch, code, directories=True)
    with written_atomically(tmp_path / "out") as directory:
        (directory / "a").write_text("a")
    assert failed
    assert names_in(tmp_path / "out") == ["a"]


def test_a_file_system_that_does_not_tell_what_is_free_is_no_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some say 0 of 0, some say nothing."""
    empty = shutil.disk_usage(tmp_path)._replace(total=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: empty)
    require_space(tmp_path, 10**9)

    def unknown(_: Path) -> None:
        raise fault(errno.ENOSYS)

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    require_space(tmp_path, 10**9)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_writing_leaves_nothing(code: int, tmp_path: Path) -> None:
    """Quota or space, the half-written directory goes."""
    with pytest.raises(ExportError, match="disk is full") as caught, written_atomically(tmp_path / "out") as directory:
        (directory / "half").write_text("half")
        raise OSError(code, os.strerror(code))
    assert caught.value.hint
    assert names_in(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this user may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_leaves_nothing(small_disk: Path) -> None:
    """Space was there at the start and was used up meanwhile."""
    with pytest.raises(ExportError, match="disk is full"), written_atomically(small_disk / "out") as directory:
        (directory / "a").write_bytes(bytes(4 * 2**20))
    assert names_in(small_disk) == []


def test_a_parent_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where a directory should be, and a directory without permission."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="cannot be written") as caught, written_atomically(tmp_path / "file" / "out"):
        pass
    assert caught.value.hint
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.geteuid() == 0:
        closed = Path("/proc")
    with pytest.raises(ExportError, match="cannot be written"), written_atomically(closed / "out"):
        pass


def test_a_read_only_file_system_is_an_error_in_words(small_disk: Path) -> None:
    """Nothing is left, because nothing could be made."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ExportError, match="Read-only file system"), written_atomically(small_disk / "out"):
        pass


def test_a_name_too_long_is_an_error_in_words(tmp_path: Path) -> None:
    """The file system's limit, not a traceback."""
    out = tmp_path / ("x" * 300)
    refuse_existing(out)
    require_space(out, 1)
    with pytest.raises(ExportError, match="too long"), written_atomically(out):
        pass
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which file a handle is")
def test_every_file_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut could leave a complete-looking directory of empty files."""
    seen: list[str] = []
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        seen.append("rename")
        return real(self, target)

    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    monkeypatch.setattr(Path, "rename", rename)
    with written_atomically(tmp_path / "out") as directory:
        (directory / "adapter").mkdir()
        (directory / "adapter" / "deep").touch()
        (directory / "flat").touch()
    at = seen.index("rename")
    partial = str(tmp_path / "out.partial")
    assert {f"{partial}/adapter/deep", f"{partial}/flat", f"{partial}/adapter", partial} <= set(seen[:at])
    assert str(tmp_path) in seen[at:]
