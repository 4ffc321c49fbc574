"""Exports that fail, are cancelled or are killed: a clear error, and nothing half-written stays."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.errors import Cancelled, CheckpointError, ExportError, RecipeError, SurgeonError, VerifyError
from surgeon.export import checkpoint_writer
from surgeon.export.shard_writer import write_shards
from tests.export.handmade_shards import llama_tensors, write_config, write_llama, write_shard
from tests.export.replaying import MEAN, PRUNE, digests, names_in, run, start_run
from tests.faults import failing, failing_sync, file_of, without_locks
from tests.jobs import perform


def refused(base: Path, out: Path, kind: type[SurgeonError], *steps: Any, **more: Any) -> SurgeonError:
    """Return the error of a run that must leave the place of its target as it was."""
    place = out.parent
    before = digests(place) if place.is_dir() else None
    with pytest.raises(kind) as caught:
        run(base, out, *(steps or (PRUNE,)), **more)
    assert (digests(place) if place.is_dir() else None) == before
    assert not out.with_name(out.name + ".partial").exists()
    assert caught.value.what
    assert caught.value.where or isinstance(caught.value, Cancelled)
    return caught.value


def test_a_target_that_exists_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """A measured step would take minutes; it would even need a tokenizer, which this base does not have."""
    base = write_llama(tmp_path / "base")
    (tmp_path / "out").mkdir()
    measured = {"prune": {"layers": {"lowest": 1, "by": "block_influence"}}}
    assert "already exists" in refused(base, tmp_path / "out", ExportError, measured).what


@pytest.mark.parametrize("inside", ["out", "deep/out"])
def test_a_target_inside_the_base_is_refused(inside: str, tmp_path: Path) -> None:
    """The base is only read, also when it is named through a link."""
    base = write_llama(tmp_path / "base")
    link = tmp_path / "link"
    link.symlink_to(base)
    for name in (base, link):
        assert "inside" in refused(name, base / inside, ExportError).what
        assert "inside" in refused(base, name / inside, ExportError).what


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how much is needed; nothing is made."""
    base = write_llama(tmp_path / "base")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert "free" in refused(base, tmp_path / "out", ExportError).what


@pytest.mark.parametrize("what", ["shard", "side file", "config"])
def test_a_disk_that_fills_during_an_export_leaves_nothing(what: str, tmp_path: Path) -> None:
    """On a real file system of 2 MiB, filled up to a point by something else."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        base = write_llama(tmp_path / "base", layers=40)
        (base / "vocab.txt").write_bytes(bytes(10_000 if what != "side file" else 1_900_000))
        shard = (base / "model.safetensors").stat().st_size
        room = {"shard": shard // 2, "side file": shard * 2, "config": shard + 2048}[what]
        (place / "filler").write_bytes(bytes(2 * 2**20 - (room // 4096 + 1) * 4096))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_writer, "require_space", lambda *_: None)
            assert "disk is full" in refused(base, place / "out", ExportError).what
        assert names_in(place) == ["filler"]
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("gone", ["shard", "side file"])
def test_a_base_that_vanishes_while_it_is_copied_is_blamed(gone: str, tmp_path: Path) -> None:
    """The message names the base's file, not the target."""
    base = write_llama(tmp_path / "base", shards=3)
    (base / "vocab.txt").write_text("x")
    file = base / ("model-00003-of-00003.safetensors" if gone == "shard" else "vocab.txt")

    def remove(kind: str, body: dict[str, Any]) -> None:
        file.unlink(missing_ok=True)

    place = tmp_path / "place"
    place.mkdir()
    error = refused(base, place / "out", CheckpointError, emit=remove)
    assert error.where == str(file)
    assert "any more" in error.what


@pytest.mark.parametrize("how", ["longer", "other bytes", "another file"])
@pytest.mark.parametrize("step", [PRUNE, MEAN], ids=["copying", "calculating"])
def test_a_base_that_changes_while_it_is_copied_is_blamed(step: Any, how: str, tmp_path: Path) -> None:
    """Also where nothing is verified: half of the one and half of the other model is no export."""
    base = write_llama(tmp_path / "base", shards=3)
    file = base / "model-00003-of-00003.safetensors"

    def change(kind: str, body: dict[str, Any]) -> None:
        if how == "another file":
            (tmp_path / "new").write_bytes(bytes(9))
            (tmp_path / "new").replace(file)
        else:
            file.write_bytes(file.read_bytes() + b"x" if how == "longer" else bytes(file.stat().st_size))

    place = tmp_path / "place"
    place.mkdir()
    error = refused(base, place / "out", CheckpointError, step, emit=change)
    assert error.where == str(file)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which file a handle is")
@pytest.mark.parametrize("step", [PRUNE, MEAN], ids=["copying", "calculating"])
def test_a_base_on_a_server_that_forgets_it_is_blamed(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale handle is the base's fault: the target can be written very well."""
    base = write_llama(tmp_path / "base", shards=3)
    opened = open_checkpoint(base)
    monkeypatch.setattr(Checkpoint, "fingerprint", opened.fingerprint)
    for name in ("copy_file_range", "pread", "preadv"):
        failing(monkeypatch, name, errno.ESTALE, lambda handle, *_: file_of(handle).is_relative_to(base))
    error = refused(base, tmp_path / "out", CheckpointError, step)
    assert "any more: Stale file handle" in error.what
    assert Path(error.where).parent == base


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EXDEV, errno.EIO, errno.ETXTBSY, errno.EACCES, errno.ENOTSUP])
def test_a_kernel_that_cannot_copy_between_file_systems_is_done_without(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it says: reading and writing meet a real fault again."""
    base = write_llama(tmp_path / "base", shards=3)
    run(base, tmp_path / "plain", PRUNE)
    failing(monkeypatch, "copy_file_range", code)
    run(base, tmp_path / "out", PRUNE)
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")


def test_a_side_file_that_cannot_be_read_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_llama(tmp_path / "base")
    (base / "vocab.txt").write_text("x")
    real = Path.open

    def refuse(self: Path, *args: Any, **more: Any) -> Any:
        if self == base / "vocab.txt":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "open", refuse)
    error = refused(base, tmp_path / "place" / "out", CheckpointError)
    assert error.where == str(base / "vocab.txt")


def test_an_export_without_locks_and_syncs_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so once."""
    base = write_llama(tmp_path / "base", shards=3)
    run(base, tmp_path / "plain", PRUNE)
    without_locks(monkeypatch)
    failing_sync(monkeypatch, errno.EINVAL, directories=True)
    said: list[str] = []
    run(base, tmp_path / "out", PRUNE, emit=lambda kind, body: said.append(body.get("text", "")))
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")
    assert len([text for text in said if "has no locks" in text]) == 1
    assert names_in(tmp_path) == ["base", "out", "plain"]


@pytest.mark.parametrize("step", [PRUNE, MEAN], ids=["copying", "calculating"])
def test_a_cancel_leaves_nothing(step: Any, tmp_path: Path) -> None:
    """At whatever piece it comes."""
    base = write_llama(tmp_path / "base")
    place = tmp_path / "place"
    place.mkdir()
    for after in range(1, 4):
        asked = iter([False] * after + [True] * 1000)
        refused(base, place / "out", Cancelled, step, cancelled=lambda asked=asked: next(asked))
    assert names_in(place) == []


def test_a_kill_leaves_no_target_and_the_next_run_clears_up(tmp_path: Path) -> None:
    """SIGKILL in the middle of the weights: OUT is absent, OUT.partial is recognised and replaced."""
    base = write_llama(tmp_path / "base", layers=6, shards=3)
    wait = "def emit(event):\n    print('writing', flush=True)\n    sys.stdin.readline()"
    process = start_run(base, tmp_path / "out", PRUNE, prelude=wait)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(ExportError, match="another process"):
        run(base, tmp_path / "out", PRUNE)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names_in(tmp_path) == ["base", "out.partial"]
    run(base, tmp_path / "out", PRUNE)
    run(base, tmp_path / "other", PRUNE)
    assert digests(tmp_path / "out") == digests(tmp_path / "other")
    assert names_in(tmp_path) == ["base", "other", "out"]


def test_two_exports_to_one_target_are_never_mixed(tmp_path: Path) -> None:
    """One of them is whole, the other is refused."""
    base = write_llama(tmp_path / "base", layers=6)
    wait = "print('ready', flush=True)\nsys.stdin.readline()"
    steps = [PRUNE, {"prune": {"layers": [0]}}]
    both = [start_run(base, tmp_path / "out", step, prelude=wait) for step in steps]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate() for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1]
    assert "ExportError" in ends[codes.index(1)][1]
    run(base, tmp_path / "alone", steps[codes.index(0)])
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


@pytest.mark.parametrize("fault", ["a missing tensor", "another shape", "another config"])
def test_an_export_that_is_not_what_was_planned_is_not_published(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers and config are compared with the plan, even without --verify."""
    base = write_llama(tmp_path / "base")
    real = write_shards

    def wrong(plan: Any, directory: Path, *rest: Any) -> None:
        real(plan, directory, *rest)
        tensors = dict(llama_tensors(2))
        if fault == "a missing tensor":
            del tensors["lm_head.weight"]
            write_shard(directory / "model.safetensors", tensors)
        elif fault == "another shape":
            tensors["lm_head.weight"] = tensors["model.norm.weight"]
            write_shard(directory / "model.safetensors", tensors)

    monkeypatch.setattr(checkpoint_writer, "write_shards", wrong)
    if fault == "another config":
        monkeypatch.setattr(
            checkpoint_writer, "write_config", lambda _plan, directory: write_config(directory, 2, extra=1)
        )
    refused(base, tmp_path / "out", VerifyError)


def test_a_base_that_is_another_model_than_the_recipes_is_refused(tmp_path: Path) -> None:
    """The fingerprint says so before anything is written."""
    base = write_llama(tmp_path / "base")
    recipe = {"version": 1, "base": {"model": str(base), "fingerprint": "0" * 16}, "steps": [PRUNE]}
    with pytest.raises(RecipeError, match="fingerprint"):
        perform(
            "run", {"recipe": recipe, "out": str(tmp_path / "out"), "verify": False}, lambda *_: None, lambda: False
        )
    assert names_in(tmp_path) == ["base"]


def test_a_failure_in_the_last_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written, and then the card cannot be."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint_writer, "check_written", fail)
    base = write_llama(tmp_path / "base")
    assert "cannot be written" in refused(base, tmp_path / "out", ExportError).what
