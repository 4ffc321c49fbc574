"""Hidden states that do not fit in memory come back from disk bit for bit, and leave nothing behind."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.backend import hidden_states
from surgeon.backend.hidden_states import HiddenStates
from surgeon.errors import ScoreError


def state(seed: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a random state of 4 tokens and width 8."""
    return torch.randn(batch, 4, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("room", [0, 300, 1 << 20])
def test_states_come_back_bit_for_bit_from_memory_and_from_disk(dtype: torch.dtype, room: int) -> None:
    with HiddenStates(room) as kept:
        for variant in range(3):
            kept.put(variant, 0, state(variant, 2, dtype))
            kept.put(variant, 1, state(variant + 10, 1, dtype))
        for variant in range(3):
            assert torch.equal(kept.get(variant, 0), state(variant, 2, dtype))
            assert torch.equal(kept.get(variant, 1), state(variant + 10, 1, dtype))
        assert (kept.spilled_bytes > 0) == (room < 1 << 20)


def test_a_state_that_does_not_begin_its_storage_is_written_as_it_looks() -> None:
    whole = state(0, 4)
    with HiddenStates(0) as kept:
        kept.put(0, 0, whole[1:3].transpose(0, 1))
        assert torch.equal(kept.get(0, 0), whole[1:3].transpose(0, 1))


def test_places_on_disk_and_room_in_memory_are_used_again() -> None:
    one = state(0).nbytes
    with HiddenStates(one) as kept:
        for number in range(20):
            for variant in (0, 1):
                kept.put(variant, 0, state(number + variant))
            assert torch.equal(kept.get(0, 0), state(number))
            assert torch.equal(kept.get(1, 0), state(number + 1))
        assert kept.spilled_bytes == one
        kept.keep_only({1})
        kept.put(2, 0, state(7))
        kept.put(3, 0, state(8))
        assert torch.equal(kept.get(1, 0), state(20))
        assert kept.spilled_bytes == 2 * one


def test_nothing_has_a_name_on_disk_while_states_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with HiddenStates(0) as kept:
        kept.put(0, 0, state(0))
        assert list(tmp_path.iterdir()) == []
        assert torch.equal(kept.get(0, 0), state(0))


def test_a_full_disk_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tensor: torch.Tensor) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hidden_states, "_bytes_of", full)
    with HiddenStates(0) as kept, pytest.raises(ScoreError, match="No space left on device") as caught:
        kept.put(0, 0, state(0))
    assert "TMPDIR" in caught.value.hint
