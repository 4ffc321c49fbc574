"""Names of layers inside a config value, such as the modules that `quantization_config` leaves alone.

Entries that name one layer by its number travel with it and are renumbered. Regular expressions over numbers cannot be.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from surgeon.core.structure.layer_fields import Config
from surgeon.errors import ArchitectureError

_HERE = "\0"
Entry = tuple[tuple[str | int, ...], str, Any]
"""The way to the list or mapping that holds it, the name with a mark for the number, and what a mapping says of it."""


class LayerNames(msgspec.Struct, frozen=True):
    """Every list entry or mapping key under `key` that names a layer: `container` and its number, between dots."""

    key: str
    container: str
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return each layer's entries, and its number if that is tied to it; None where no layer is named by number."""
        entries = list(self._entries(config.get(self.key), ()))
        tied = self._unclear(config.get(self.key)) is not None
        if not entries and not tied:
            return None
        return tuple(
            (tuple(entry for number, entry in entries if number == index), index if tied else None)
            for index in range(count)
        )

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write every entry with its layer's new number, behind the ones that name no layer."""
        unclear = self._unclear(config.get(self.key))
        if unclear and [number for _, number in values] != list(range(len(values))):
            raise ArchitectureError(
                f"names layers by a regular expression over their numbers ({unclear!r}), which cannot be renumbered",
                where=f"config field {self.key}",
                allowed="entries that name one layer each, or all of them",
                hint="write them out in config.json",
            )
        value = self._without(config.get(self.key))
        for position, (entries, _) in enumerate(values):
            for path, template, says in entries:
                holder = value
                for step in path:
                    holder = holder[step]
                name = template.replace(_HERE, str(position))
                if isinstance(holder, list):
                    holder.append(name)
                else:
                    holder[name] = copy.deepcopy(says)
        return {self.key: value}

    def _template(self, name: object) -> tuple[int, str] | None:
        """Split a name into the layer's number and the rest; None if it names no single layer."""
        match = (
            re.fullmatch(rf"(.*?(?<![A-Za-z0-9_]){self.container}\\?\.)(\d+)((?:\\?\..*|\$)?)", name)
            if isinstance(name, str)
            else None
        )
        return (int(match[2]), f"{match[1]}{_HERE}{match[3]}") if match else None

    def _entries(self, value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[int, Entry]]:
        for step, part, name in _parts(value):
            found = self._template(name)
            if found:
                yield found[0], (path, found[1], part if isinstance(value, dict) else None)
            else:
                yield from self._entries(part, (*path, step))

    def _without(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._without(part) for key, part in value.items() if not self._template(key)}
        if isinstance(value, list):
            # Lists of lists keep their places, so that the way into them stays true.
            return [self._without(part) for part in value if not self._template(part)]
        return value

    def _unclear(self, value: Any) -> str | None:
        for _, part, name in _parts(value):
            if (
                isinstance(name, str)
                and not self._template(name)
                and re.search(rf"{self.container}\\?\.[\[(]?\d", name)
            ):
                return name
            if found := self._unclear(part):
                return found
        return None


def _parts(value: Any) -> Iterator[tuple[str | int, Any, object]]:
    if isinstance(value, dict):
        yield from ((key, part, key) for key, part in value.items())
    elif isinstance(value, list):
        yield from ((index, part, part) for index, part in enumerate(value))
