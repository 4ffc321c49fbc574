"""Every fault of a document at once, each with its line where the document knows its lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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


REPEAT = "repeat"
_MOST_ROUNDS = 1000


def written_steps(plain: Sequence[Any], problems: Problems) -> Iterator[tuple[Spot, Any]]:
    """Yield the steps of a document with their places; those of `repeat: {times: 3, steps: […]}` once a round.

    A recipe has no rounds: it has the steps that they come to, so that each says what it was resolved for.
    """
    for at, step in enumerate(plain):
        if not isinstance(step, Mapping) or REPEAT not in step:
            yield ("steps", at), step
            continue
        path: Spot = ("steps", at, REPEAT)
        body = step[REPEAT] if isinstance(step[REPEAT], Mapping) else {}
        times, steps = body.get("times"), body.get("steps")
        if len(step) != 1 or body.keys() != {"times", "steps"} or not isinstance(steps, list) or not steps:
            problems.add(path, "is no repetition", "{times: 3, steps: [a list of operations]}, and nothing beside it")
        elif isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= _MOST_ROUNDS:
            problems.add((*path, "times"), f"is {times!r}", f"1-{_MOST_ROUNDS}")
        elif any(isinstance(one, Mapping) and (REPEAT in one or "resolved" in one) for one in steps):
            problems.add((*path, "steps"), "holds `repeat` or `resolved`", "operations; each round comes to its own")
        else:
            for _ in range(times):
                yield from (((*path, "steps", number), one) for number, one in enumerate(steps))


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
