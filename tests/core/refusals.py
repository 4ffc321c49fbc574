"""What every refusal of a checkpoint must say."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.errors import CheckpointError


def refusal(path: Path) -> CheckpointError:
    """Return the error that opening raises; it must say where, and what is allowed or what to do next."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    error = caught.value
    assert str(path) in error.where
    assert error.what
    assert error.hint or error.allowed
    return error
