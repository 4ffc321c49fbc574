"""What msgspec says of a wrong value, in the words of a person."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest

from surgeon.core.recipe.problems import validation_text


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ("a", int, "is text, and has to be a whole number"),
        (0, Annotated[int, msgspec.Meta(ge=1)], "has to be a whole number >= 1"),
        ("a", int | None, "is text, and has to be a whole number"),
        ("a", dict[str, int], "is text, and has to be a mapping"),
        ([1, "b"], list[int], "is text, and has to be a whole number (at [1])"),
        (1.5, bool, "is a number, and has to be true or false"),
    ],
)
def test_kinds_are_named_in_plain_words(value: Any, kind: Any, text: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, kind)
    assert validation_text(caught.value) == text
