"""Several shards are copied at once: the same bytes, one fault, one account of progress."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import Cancelled, CheckpointError
from surgeon.export import shard_writer
from tests.export.handmade_shards import write_llama
from tests.export.replaying import COPY, MEAN, PRUNE, digests, names_in, run
from tests.export.test_checkpoint_writer import stored_bytes


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that counts as one of more than a gigabyte."""
    monkeypatch.setattr(shard_writer, "SPLIT_BYTES", 2000)
    return write_llama(tmp_path / "base", layers=6)


def test_from_a_gigabyte_on_there_are_two_shards_of_about_the_same_size(large: Path, tmp_path: Path) -> None:
    """Whatever the machine: the files must not depend on how many cores wrote them."""
    run(large, tmp_path / "out", PRUNE)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(sizes) == 2
    assert 0.5 < sizes[0] / sizes[1] < 2
    base = stored_bytes(large)
    assert (
        stored_bytes(tmp_path / "out")["model.layers.3.mlp.up_proj.weight"] == base["model.layers.5.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("step", [PRUNE, COPY, MEAN], ids=["prune", "copy", "mean"])
def test_one_writer_or_several_the_bytes_are_the_same(
    step: Any, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where tensors are calculated, which happens in one thread."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 1200)
    run(large, tmp_path / "several", step)
    monkeypatch.setattr(shard_writer, "_WRITERS", 1)
    run(large, tmp_path / "one", step)
    assert digests(tmp_path / "several") == digests(tmp_path / "one")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 3


def test_progress_is_told_by_one_thread(large: Path, tmp_path: Path) -> None:
    """A front end need not know that several write."""
    tellers, done = set(), []

    def emit(kind: str, body: dict[str, Any]) -> None:
        tellers.add(threading.current_thread())
        done.append(body.get("done", 0))

    result = run(large, tmp_path / "out", PRUNE, emit=emit)
    assert tellers == {threading.current_thread()}
    assert done == sorted(done)
    assert done[-1] == result["bytes"]


def test_a_fault_in_one_shard_stops_the_others_and_is_the_one_told(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the cancelling of the others, and nothing stays."""
    monkeypatch.setattr(shard_writer, "_PIECE", 64)
    real = shard_writer._copy

    def fail(source: int, piece: Any, out: int, advance: Any, cancelled: Any) -> None:
        if piece.start > 3000:
            raise CheckpointError("became shorter while it was copied", where=str(piece.path))
        while not cancelled():
            pass
        real(source, piece, out, advance, cancelled)

    monkeypatch.setattr(shard_writer, "_copy", fail)
    with pytest.raises(CheckpointError, match="shorter"):
        run(large, tmp_path / "out", {"prune": {"layers": [2]}})
    assert names_in(tmp_path) == ["base"]


def test_a_cancel_stops_all_of_them(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told as one."""
    monkeypatch.setattr(shard_writer, "_PIECE", 64)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 8

    with pytest.raises(Cancelled):
        run(large, tmp_path / "out", PRUNE, cancelled=cancelled)
    assert names_in(tmp_path) == ["base"]


def test_an_error_of_the_listener_stops_all_of_them(large: Path, tmp_path: Path) -> None:
    """Nothing goes on writing in the background."""
    before = threading.active_count()

    def emit(kind: str, body: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(large, tmp_path / "out", PRUNE, emit=emit)
    assert threading.active_count() == before
    assert names_in(tmp_path) == ["base"]
