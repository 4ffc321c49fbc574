"""Config fields that list something for each layer, and how to turn each into per-layer values and back.

Before an edit every such field is read as one value per layer; a draft carries the value with the layer; after the
edit the field is written from the values of the layers that are there. A kind that cannot express the result
refuses by the field's name. Counts and periods are in `layer_counts.py`, ties between layers in `layer_ties.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from surgeon.errors import ArchitectureError

Config = Mapping[str, Any]
Derived = Callable[[Config, int], Sequence[Any] | None]

_STATES = frozenset({"linear_attention", "conv", "mamba", "recurrent"})
"""Kinds of layers that keep a state and no keys and values."""

REMOVED = object()
"""Written in place of a value: the key is taken out of the config."""


class LayerField(Protocol):
    """One config field, or a group of them, that says something about each layer."""

    @property
    def key(self) -> str:
        """The config key it goes by."""
        ...

    @property
    def replaces(self) -> tuple[str, ...]:
        """Other keys that mean nothing once this one is written; they are taken out."""
        ...

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return one value per layer, or None where the field says nothing in this config."""
        ...

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Return the config keys to set so that they say `values`; REMOVED takes a key out.

        Raises:
            ArchitectureError: the field cannot say it.
        """
        ...


class PerLayerList(msgspec.Struct, frozen=True):
    """A list with one entry per layer, such as `layer_types`.

    derived: gives the list that the model assumes when the key is absent or empty, where that depends on the position;
        the list is then written out, so that the layers that stay keep what they were.
    replaces: keys that `derived` reads and that mean nothing beside a written list.
    begins_with: what the first entry has to stay, if it is that: caches that count tokens there work on no other.
    ends_with: what transformers forces the last entry to be.
    needs: entries without which transformers refuses the config.
    """

    key: str
    derived: Derived | None = None
    replaces: tuple[str, ...] = ()
    begins_with: str | None = None
    ends_with: str | None = None
    needs: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the list, or the derived one."""
        value = config.get(self.key)
        if not value:
            value = self.derived(config, count) if self.derived else None
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
            length = len(value) if isinstance(value, Sequence) else type(value).__name__
            raise ArchitectureError(
                f"has {length} entries, but there are {count} layers",
                where=f"config.json, {self.key}",
                allowed="a list with one entry per layer",
                hint="the config and the weights disagree",
            )
        return (*value[:-1], self.ends_with) if self.ends_with else tuple(value)

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the list, and take out what it replaces."""
        if self.ends_with and values[-1] != self.ends_with:
            raise ArchitectureError(
                f"must end with {self.ends_with}: transformers forces it, and the last layer would be {values[-1]}",
                where=f"config field {self.key}",
                allowed=f"edits after which a layer of {self.ends_with} is the last",
                hint="keep the last layer where it is",
            )
        missing = [entry for entry in self.needs if entry not in values]
        if missing:
            raise ArchitectureError(
                f"needs at least one {missing[0]}, or transformers refuses the config",
                where=f"config field {self.key}",
                allowed=f"edits that leave a layer of each of {', '.join(self.needs)}",
                hint="keep one of them",
            )
        before = config.get(self.key) or (self.derived(config, len(values)) if self.derived else None) or ()
        if self.begins_with and before[0] == self.begins_with != values[0]:
            raise ArchitectureError(
                f"must begin with {self.begins_with}: transformers counts the cached tokens in the first layer",
                where=f"config field {self.key}",
                allowed=f"edits after which a layer of {self.begins_with} is the first",
                hint="keep the first layer where it is",
            )
        if _STATES.intersection(values) and not _attends(values) and _attends(before):
            raise ArchitectureError(
                "would be left without a layer of attention, and transformers counts the cached tokens there",
                where=f"config field {self.key}",
                allowed="edits that leave at least one layer of attention",
                hint="keep one of them",
            )
        return {self.key: list(values), **dict.fromkeys((key for key in self.replaces if key in config), REMOVED)}


def _attends(kinds: Sequence[Any]) -> bool:
    return any(
        isinstance(kind, str) and ("attention" in kind or kind == "hybrid") and kind not in _STATES for kind in kinds
    )


class LayerIndices(msgspec.Struct, frozen=True):
    """A list of the layers that are special, such as `mlp_only_layers`.

    `default` is what the model assumes when the key is absent; `first` is the number of the first layer in it.
    `count` is how many layers the base has: what is numbered behind them stays behind the last.
    """

    key: str
    default: tuple[int, ...] | None = None
    first: int = 0
    replaces: tuple[str, ...] = ()
    count: int | None = None

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the layers that the list names."""
        value = config.get(self.key)
        value = self.default if value is None else value
        if value is None:
            return None
        special = {index % count if index < 0 else index - self.first for index in value}
        return tuple(index in special for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the positions of the True values."""
        numbers = [position + self.first for position, special in enumerate(values) if special]
        stored = config.get(self.key) or () if self.count is not None else ()
        behind = [index for index in stored if index - self.first >= (self.count or 0)]
        return {self.key: [*numbers, *(index - (self.count or 0) + len(values) for index in behind)]}


class LayerPattern(msgspec.Struct, frozen=True):
    """A string with one character per layer, such as `hybrid_override_pattern`."""

    key: str
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the characters."""
        value = config.get(self.key)
        if not isinstance(value, str):
            return None
        if len(value) != count:
            raise ArchitectureError(
                f"has {len(value)} characters, but there are {count} layers",
                where=f"config.json, {self.key}",
                allowed="one character per layer",
            )
        return tuple(value)

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the characters."""
        del config
        return {self.key: "".join(values)}


class KeyedByLayer(msgspec.Struct, frozen=True):
    """A mapping from layer numbers to what differs there, such as `per_layer_config`; other layers have no entry.

    `count` is how many layers the base has: entries of what is numbered behind them stay behind the last.
    """

    key: str
    replaces: tuple[str, ...] = ()
    count: int | None = None

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return each layer's entry, or None."""
        value = config.get(self.key)
        if not isinstance(value, Mapping):
            return None
        entries = self._entries(value)
        return tuple(entries.get(index) for index in range(count))

    def _entries(self, value: Mapping[str, Any]) -> dict[int, Any]:
        odd = next((key for key in value if not str(key).isdecimal()), None)
        if odd is not None:
            raise ArchitectureError(
                f"has the key {odd!r}, which is no number of a layer",
                where=f"config field {self.key}",
                allowed="the numbers of layers, counted from 0",
                hint="correct config.json",
            )
        return {int(number): entry for number, entry in value.items()}

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the entries that are there."""
        found = {position: entry for position, entry in enumerate(values) if entry is not None}
        if self.count is not None:
            behind = self._entries(config[self.key])
            found |= {at - self.count + len(values): entry for at, entry in behind.items() if at >= self.count}
        return {self.key: {str(position): entry for position, entry in sorted(found.items())}}


class RepeatingList(msgspec.Struct, frozen=True):
    """A list that is repeated until every layer has an entry, such as `block_types`; it is written out in full."""

    key: str
    default: tuple[Any, ...] | None = None
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the entry of each layer."""
        value = config.get(self.key) or self.default
        return None if value is None else tuple(value[index % len(value)] for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write one entry per layer."""
        del config
        return {self.key: list(values)}


def of_base(field: LayerField, count: int) -> LayerField:
    """Return a field that knows how many layers the base has, where that matters to what it writes."""
    if isinstance(field, LayerIndices | KeyedByLayer):
        return msgspec.structs.replace(field, count=count)
    return field
