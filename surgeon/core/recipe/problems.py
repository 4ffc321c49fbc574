"""Every fault of a document at once, each with its line where the document knows its lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from surgeon.core.selection.selection import Selection
from surgeon.errors import RecipeError

Spot = tuple[str | int, ...]
"""A way into a document: keys and list positions."""


def built_in(raw: Any) -> Any:
    """Return built-in types only: ruamel's own remember how a scalar was written."""
    if isinstance(raw, Selection):
        return built_in(raw.raw)
    if isinstance(raw, Mapping):
        return {str(key): built_in(value) for key, value in raw.items()}
    if isinstance(raw, (list, tuple)):
        return [built_in(value) for value in raw]
    if raw is None or isinstance(raw, bool):
        return raw
    kind = next((kind for kind in (int, float) if isinstance(raw, kind)), str)
    return kind(raw)


_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
    "object": "a mapping", "null": "nothing",
}  # fmt: skip
_EXPECTED = re.compile(r"Expected `([\w| ]+)`((?: [<>]=? ?\S+?)?)(?:, got `([\w| ]+)`)?(?: - at `\$?([^`]*)`)?")


def validation_text(error: Exception) -> str:
    """Return what msgspec says of a value of the wrong type or size in the words of a person."""
    found = _EXPECTED.fullmatch(str(error))
    if found is None:
        return str(error)
    wanted, bound, got, spot = found.groups()
    text = f"has to be {_kind_text(wanted)}{bound}"
    text = f"is {_kind_text(got)}, and {text}" if got else text
    return f"{text} (at {spot.lstrip('.')})" if spot and spot.strip(".") else text


def _kind_text(kinds: str) -> str:
    return " or ".join(_KINDS.get(kind.strip(), kind.strip()) for kind in kinds.split("|") if kind.strip() != "null")


class Problems:
    """Collects every fault of a document with its line."""

    def __init__(self, where: str, document: Any) -> None:
        self.where, self.document, self.faults = where, document, list[str]()

    def add(self, path: Spot, what: str, allowed: str = "") -> None:
        """Take down one fault."""
        line = self._line(path)
        spot = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        at = f"line {line}, {spot}" if line else spot
        self.faults.append((f"{at}: " if at else "") + what + (f" (allowed: {allowed})" if allowed else ""))

    def unknown(self, path: Spot, key: str, known: list[str]) -> None:
        """Take down a key that is not known, with the nearest spelling."""
        near = get_close_matches(str(key), known, n=1)
        did = f"; did you mean {near[0]!r}?" if near else ""
        self.add((*path, key), f"unknown key {key!r}{did}", ", ".join(known))

    def raise_any(self) -> None:
        """Raise all faults as one error, if there are any.

        Raises:
            RecipeError: there are.
        """
        if self.faults:
            many = f"{len(self.faults)} problems\n  " + "\n  ".join(self.faults)
            raise RecipeError(self.faults[0] if len(self.faults) == 1 else many, where=self.where)

    def _line(self, path: Spot) -> int | None:
        spot: Any = self.document
        line = None
        for part in path:
            if not hasattr(spot, "lc"):  # plain data, which has no lines
                break
            try:
                lines = spot.lc
                line = (lines.item(part) if isinstance(spot, list) else lines.key(part))[0] + 1
                spot = spot[part]
            except (KeyError, IndexError, TypeError):
                break
        return line
