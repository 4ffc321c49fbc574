"""Scores are measured whether or not they can be kept, and never kept of a base that changes meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from surgeon.backend.digests import content_digest
from surgeon.backend.scoring.score_cache import ScoreCache
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.errors import CheckpointError, SurgeonError
from tests.cli.tiny_checkpoints import tiny_llama
from tests.faults import blocked, fault
from tests.jobs import keep_silent, perform


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base")


@pytest.fixture
def cache() -> Path:
    return Path(os.environ["SURGEON_CACHE"])


def score(base: Path, emit: Any = keep_silent, name: str = "weight_norm") -> Any:
    recipe = {"version": 1, "base": {"model": str(base)}, "steps": []}
    return perform("score", {"recipe": recipe, "names": [name], "device": "cpu"}, emit)["scores"][0]["values"]


@pytest.mark.parametrize("where", ["", "scores", "digests"])
def test_a_cache_that_cannot_be_written_changes_no_figure(base: Path, cache: Path, where: str) -> None:
    blocked(cache / where)
    values = score(base)
    (cache / where).unlink()
    assert score(base) == values


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ESTALE])
def test_a_full_cache_that_became_read_only_is_left_as_it_is(
    base: Path, cache: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is too large, and nothing can be removed from it."""
    score(base)
    values = score(base)
    kept = ScoreCache(open_checkpoint(base))

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise fault(code, self)

    for name in ("unlink", "mkdir", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(os, "utime", lambda path, *_: refuse(path))
    kept.trim(most_bytes=0)
    assert score(base) == values
    assert score(base, name="stable_rank")


@pytest.mark.parametrize("left", [b"", b"abc", b"\xff\xfe", b"0" * 63 + b"\n"])
def test_what_a_full_disk_left_of_a_digest_is_none(base: Path, cache: Path, left: bytes) -> None:
    """Two models with an empty note would be taken for one."""
    checkpoint = open_checkpoint(base)
    expected = content_digest(checkpoint)
    (note,) = (cache / "digests").iterdir()
    note.write_bytes(left)
    assert content_digest(checkpoint) == expected
    assert len(note.read_bytes()) == 64


@pytest.mark.parametrize("vanishes", [True, False])
def test_a_base_that_vanishes_or_changes_while_it_is_measured_is_named_and_nothing_is_kept(
    base: Path, cache: Path, vanishes: bool
) -> None:
    shard = base / "model.safetensors"
    raw = shard.read_bytes()

    def change(kind: str, body: dict[str, Any]) -> None:
        if kind == "progress" and body["done"] == 2:
            shard.unlink() if vanishes else shard.write_bytes(bytes(len(raw) // 2) + raw[len(raw) // 2 :])

    with pytest.raises(CheckpointError, match="any more" if vanishes else "was changed") as caught:
        score(base, change)
    assert caught.value.where == str(shard)
    shard.write_bytes(raw)
    values = score(base)
    again = tiny_llama(base.with_name("again"))
    assert score(again) == values
    assert not [path for path in (cache / "scores").rglob("*") if path.is_file() and not path.stat().st_size]


def test_a_base_whose_shard_is_gone_before_it_is_read_is_named(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(SurgeonError, match="cannot be read any more") as caught:
        content_digest(checkpoint)
    assert caught.value.where == str(base / "model.safetensors")
