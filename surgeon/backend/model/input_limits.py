"""What a model can be given: tokens that its embedding has rows for, positions that it has vectors for.

Families that learned or stored one vector for each position know no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Protocol

from torch import nn

from surgeon.errors import DataError

_TABLE = re.compile(r"(^|\.)(wpe|\w*position\w*)(\.weight)?$")
_OFFSET = 8
"""So many rows more than positions a table may have: some families begin to count at 2."""


class Sequenced(Protocol):
    """A sequence of token ids that knows where in the data each comes from."""

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids."""
        ...

    def where_of(self, position: int) -> str:
        """Return the place in the data that a token comes from."""
        ...


def refuse_unreadable(
    model: nn.Module, sequences: Iterable[Sequenced], where: str, settings: str, written: int = 0
) -> None:
    """Refuse sequences that a model cannot read, and `written` more tokens behind each.

    Raises:
        DataError: one reaches beyond a table of positions; rotary ones have none and go on for ever. Or a token has no
            row in the embedding. Running either would end in an index out of range, which a GPU does not survive.
    """
    words, positions = _embedding_rows(model), _positions(model)
    for one in sequences:
        length = len(one.tokens) + written
        if positions is not None and length > positions:
            raise DataError(
                f"has sequences of {length} tokens, and the model knows {positions} positions",
                where=one.where_of(0) or where, allowed=f"at most {positions} tokens",
                hint=f"give a smaller {settings}",
            )  # fmt: skip
        if words is not None and max(one.tokens) >= words:
            at = next(at for at, token in enumerate(one.tokens) if token >= words)
            raise DataError(
                f"has the token {one.tokens[at]}, and the model's embedding ends at {words - 1}",
                where=one.where_of(at) or where, allowed=f"token ids from 0 to {words - 1}",
                hint="the tokenizer is another model's, or was given tokens that the embedding was not resized for",
            )  # fmt: skip


def _embedding_rows(model: Any) -> int | None:
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):  # families that embed bytes or patches
        return None
    return int(weight.shape[0]) if weight is not None and weight.dim() == 2 else None


def _positions(model: nn.Module) -> int | None:
    """Return how many positions there are vectors for; None where any number will do."""
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if _TABLE.search(name) and tensor.dim() == 2 and limit <= len(tensor) <= limit + _OFFSET:
            return limit
    return None
