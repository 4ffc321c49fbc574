"""Learning steps where results cannot be kept, and where there are no locks."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from surgeon.backend.training import learning_steps, result_store, resume_state
from surgeon.core.plan.learned_results import result_directory
from surgeon.errors import CheckpointError, ExportError, LearningError
from tests.backend.training_recipes import Step, learn_args, pupil, training
from tests.faults import blocked, fault, without_locks
from tests.jobs import job_context, perform

LORA: tuple[Step, ...] = ({"masked_lora": {"layers": "all"}}, training(steps=2), {"merge_adapters": {}})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return pupil(tmp_path)


@pytest.fixture
def cache() -> Path:
    return Path(os.environ["SURGEON_CACHE"])


class Said:
    """What a job said, and how many steps it trained."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.trained = 0

    def __call__(self, kind: str, body: dict[str, Any]) -> None:
        if body.get("level") == "warning":
            self.warnings.append(body["text"])
        self.trained += kind == "progress" and body["what"] == "training" and body["done"] > 0


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.mark.parametrize("where", ["", "learned"])
@pytest.mark.parametrize("step", [training(steps=2), {"mask_weights": {"objective": "lm", "data": "text.jsonl"}}])
def test_a_cache_that_cannot_be_written_is_told_before_anything_is_trained(
    model: Path, cache: Path, said: Said, where: str, step: Any
) -> None:
    blocked(cache / where)
    with pytest.raises(LearningError, match="results cannot be kept there") as caught:
        perform("learn", learn_args(model, step, device="cpu"), said)
    assert caught.value.where == str(cache)
    assert "SURGEON_CACHE" in caught.value.hint
    assert said.trained == 0


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_so_is_one_that_is_full_or_read_only(
    model: Path, cache: Path, said: Said, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directories are there, and nothing can be put into them."""
    import tempfile

    def full(*_: Any, **__: Any) -> None:
        raise fault(code)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(LearningError, match=os.strerror(code)) as caught:
        perform("learn", learn_args(model, training(steps=2), device="cpu"), said)
    assert caught.value.where == str(cache)
    assert said.trained == 0
    assert not list((cache / "learned").iterdir())


def test_so_is_one_with_less_room_than_the_result_takes(
    model: Path, cache: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(model)._replace(free=16 * 2**20 + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LearningError, match="GB are free") as caught:
        perform("learn", learn_args(model, training(steps=2), device="cpu"), said)
    assert (caught.value.where, said.trained) == (str(cache), 0)


def test_a_merge_that_cannot_be_kept_names_the_cache(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perform("learn", learn_args(model, *LORA[:2], device="cpu"))
    real = Path.mkdir

    def mkdir(self: Path, *args: Any, **more: Any) -> None:
        if self.name.endswith(".partial"):
            raise fault(errno.EROFS, self)
        real(self, *args, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(LearningError, match="Read-only file system") as caught:
        perform("learn", learn_args(model, *LORA, device="cpu"))
    assert caught.value.where == str(cache)


def test_a_state_that_cannot_be_saved_costs_a_warning_and_not_the_training(
    model: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = learn_args(model, training(steps=4, save_steps=1), device="cpu")

    def save(*_: Any) -> None:
        raise fault(errno.ENOSPC)

    monkeypatch.setattr(torch, "save", save)
    (address,) = perform("learn", args, said)["reports"]
    assert (result_directory(address) / "result.json").is_file()
    assert any("would begin anew" in text and "No space left" in text for text in said.warnings)


def test_without_locks_the_same_is_learned_with_a_warning(
    model: Path, cache: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results have the same bytes, and nothing is left beside them."""
    args = learn_args(model, *LORA, device="cpu")
    with_locks = perform("learn", args)["reports"]
    files = {path.relative_to(cache): path.read_bytes() for path in sorted(cache.rglob("learned.safetensors"))}
    shutil.rmtree(cache / "learned")
    without_locks(monkeypatch)
    assert perform("learn", args, said)["reports"].keys() == with_locks.keys()
    assert {path.relative_to(cache): path.read_bytes() for path in sorted(cache.rglob("learned.safetensors"))} == files
    assert {path.name for path in (cache / "learned").iterdir()} == set(with_locks)
    assert any("has no locks: of two processes that learn the same, both train" in text for text in said.warnings)


def test_without_locks_the_slower_of_two_takes_the_others_result(
    model: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was trained for nothing, and that is all."""
    args = learn_args(model, training(steps=2), device="cpu")
    without_locks(monkeypatch)
    real = learning_steps.carry_out

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(learning_steps, "carry_out", real)
        perform("learn", args)
        return real(*given)

    monkeypatch.setattr(learning_steps, "carry_out", meanwhile)
    assert perform("learn", args, said) == perform("learn", args)


def test_without_locks_nothing_that_may_be_in_use_is_removed(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = cache / "learned" / "0123.state"
    place.mkdir(parents=True)
    (place / "state.pt").write_bytes(b"x")
    for path in (place / "state.pt", place):
        os.utime(path, (0, 0))
    without_locks(monkeypatch)
    assert list(resume_state.remove_abandoned(cache / "learned")) == []
    assert place.is_dir()


@pytest.mark.parametrize("steps", [(training(steps=2),), LORA], ids=["weights", "adapters"])
def test_a_base_that_changes_while_it_is_trained_on_leaves_no_result(model: Path, cache: Path, steps: Any) -> None:
    """A result is kept under the digest of the base's bytes: it would be taken for another's."""
    shard = model / "model.safetensors"

    def change(kind: str, body: dict[str, Any]) -> None:
        if kind == "progress" and body["what"] == "training":
            raw = shard.read_bytes()
            shard.write_bytes(raw[:-4] + bytes(4))

    with pytest.raises(CheckpointError, match="was changed while it was read") as caught:
        perform("learn", learn_args(model, *steps, device="cpu"), change)
    assert caught.value.where == str(shard)
    assert not list(cache.glob("learned/*/result.json"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this user may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_is_named_whatever_library_meets_it(small_disk: Path) -> None:
    """Safetensors and torch have errors of their own for it."""
    big = {"a": torch.zeros(2**20)}
    with pytest.raises(OSError, match="No space left"):
        resume_state.save_state(small_disk / "0.state" / "state.pt", big)
    assert not list((small_disk / "0.state").iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGEON_CACHE", str(small_disk))
        with pytest.raises(LearningError, match="the disk is full") as caught:
            result_store.keep("0", lambda place: save_file(big, place / "learned.safetensors"), job_context())
    assert caught.value.where == str(small_disk)
    assert not (small_disk / "learned").exists()


def test_an_adapter_that_finds_the_disk_full_leaves_nothing(model: Path, small_disk: Path) -> None:
    recipe = {"version": 1, "base": {"model": str(model)}, "steps": [{"masked_lora": {"layers": "all", "rank": 2048}}]}
    with pytest.raises(ExportError, match="the disk is full"):
        perform("run", {"recipe": recipe, "out": str(small_disk / "out"), "verify": False, "device": "cpu"})
    assert not list(small_disk.iterdir())
