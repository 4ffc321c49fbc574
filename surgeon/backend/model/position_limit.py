"""How many positions a model has: families that learned or stored one vector for each know no others."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from torch import nn

from surgeon.errors import DataError

_TABLE = re.compile(r"(^|\.)(wpe|\w*position\w*)(\.weight)?$")
_OFFSET = 8
"""So many rows more than positions a table may have: some families begin to count at 2."""


def refuse_too_long(model: nn.Module, length: int, where: str, settings: str) -> None:
    """Refuse sequences that reach beyond a model's table of positions; rotary ones have none and go on for ever.

    Raises:
        DataError: there are such. Running it would end in an index out of range, which a GPU does not survive.
    """
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or length <= limit:
        return
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if _TABLE.search(name) and tensor.dim() == 2 and limit <= len(tensor) <= limit + _OFFSET:
            raise DataError(
                f"has sequences of {length} tokens, and the model knows {limit} positions", where=where,
                allowed=f"at most {limit} tokens", hint=f"give a smaller {settings}",
            )  # fmt: skip
