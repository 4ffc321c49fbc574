"""Results of learned steps, found by their address."""

from __future__ import annotations

import pytest

from surgeon.core.learned import is_learned, result_tensors
from surgeon.errors import LearningError


def test_a_result_that_is_gone_is_named_and_nothing_stands_in_for_it() -> None:
    """Whoever asks for its tensors learns where it was and what to do."""
    assert not is_learned("0123456789abcdef")
    with pytest.raises(LearningError, match="not there any more") as caught:
        result_tensors("0123456789abcdef")
    assert "0123456789abcdef" in caught.value.where
    assert "run the recipe again" in caught.value.hint
