"""A budget: what a model may come to at most, or must come to at least, in words and as a number.

`parameters 6e9`, `bytes 14GB`, `memory 24GB at 8192 tokens` (weights and the KV cache of one sequence), and
`tokens_per_second 1.3x` (of decoding). `0.75x` is that many times what the model has at that step. GB are 10^9 bytes,
GiB are 2^30; of parameters K, M, B and T are thousands. In YAML also as a mapping of one key: `{parameters: 6e9}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.errors import SelectionError

KINDS = ("parameters", "bytes", "memory", "tokens_per_second")
GRAMMAR = "parameters 6e9, bytes 14GB, memory 24GB at 8192 tokens, tokens_per_second 1.3x"
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?"
_TEXT = re.compile(rf"(\w+) ({_NUMBER})\s*([A-Za-z]*)(?: at ([0-9]{{1,12}}) tokens)?")
_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_BYTES = {
    "": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40,
}  # fmt: skip
_UNITS = {"parameters": _COUNTS, "bytes": _BYTES, "memory": _BYTES, "tokens_per_second": {"": 1.0}}


@dataclass(frozen=True, slots=True)
class Budget:
    """One bound. `amount` is in units of the kind, or a multiple of what there is, where it is `relative`.

    tokens: with memory, of the sequence whose KV cache is counted.
    """

    kind: str
    amount: float
    relative: bool = False
    tokens: int = 0

    @property
    def measured(self) -> bool:
        """Whether only a measurement tells what a model comes to."""
        return self.kind == "tokens_per_second"


def budget_text(raw: Any) -> str:
    """Return a budget as text, in one spelling.

    Raises:
        SelectionError: it is none.
    """
    if isinstance(raw, Mapping):
        if len(raw) != 1:
            raise SelectionError(f"one of {', '.join(KINDS)} is needed, not {list(raw)}", allowed=GRAMMAR)
        ((kind, amount),) = raw.items()
        raw = f"{kind} {amount}"
    text = " ".join(str(raw).split())
    parse_budget(text)
    return text


def parse_budget(text: str) -> Budget:
    """Return the budget that a text says.

    Raises:
        SelectionError: it says none.
    """
    match = _TEXT.fullmatch(text)
    if match is None or match[1] not in KINDS:
        raise SelectionError(f"{text!r} is no budget", allowed=GRAMMAR)
    kind, amount, unit, tokens = match[1], float(match[2]), match[3], match[4]
    relative = unit == "x"
    if not relative and unit not in _UNITS[kind]:
        known = ", ".join((*filter(None, _UNITS[kind]), "x"))
        raise SelectionError(f"{unit!r} is no unit of {kind}", allowed=known)
    if (tokens is not None) != (kind == "memory"):
        raise SelectionError(f"{text!r} is no budget", allowed="memory 24GB at 8192 tokens, and no other at tokens")
    if amount <= 0 or (relative and (amount > 1) != (kind == "tokens_per_second")):
        allowed = "more than 1x" if kind == "tokens_per_second" else "more than 0, and less than 1x"
        raise SelectionError(f"{text!r} is no budget", allowed=allowed)
    return Budget(kind, amount if relative else amount * _UNITS[kind][unit], relative, int(tokens or 0))
