"""Kinds of config fields that speak about layers, and how to turn each into per-layer values and back.

Before an edit every such field is read as one value per layer; a draft carries the value with the layer; after the
edit the field is written from the values of the layers that are there. A kind that cannot express the result
refuses by the field's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from surgeon.errors import ArchitectureError

Config = Mapping[str, Any]


class LayerField(Protocol):
    """One config field, or a group of them, that says something about each layer."""

    @property
    def key(self) -> str:
        """The config key it goes by."""
        ...

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return one value per layer, or None where the field says nothing in this config."""
        ...

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Return the config keys to set so that they say `values`; a key set to None is removed if it was absent.

        Raises:
            ArchitectureError: the field cannot say it.
        """
        ...


@dataclass(frozen=True)
class EachLayer:
    """A list with one entry per layer, such as `layer_types`.

    `derived` gives the list that the model assumes when the key is absent, where that depends on the position; the
    list is then written out, so that the layers that stay keep what they were.
    """

    key: str
    derived: Callable[[Config, int], Sequence[Any] | None] | None = None

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the list, or the derived one."""
        value = config.get(self.key)
        if value is None:
            value = self.derived(config, count) if self.derived else None
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
            length = len(value) if isinstance(value, Sequence) else type(value).__name__
            raise ArchitectureError(
                f"has {length} entries, but there are {count} layers", where=f"config.json, {self.key}",
                allowed="a list with one entry per layer", hint="the config and the weights disagree",
            )
        return tuple(value)

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the list."""
        del config
        return {self.key: list(values)}


@dataclass(frozen=True)
class Indices:
    """A list of the layers that are special, such as `mlp_only_layers`."""

    key: str

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the layers that the list names."""
        value = config.get(self.key)
        if value is None:
            return None
        special = {index % count if index < 0 else index for index in value}
        return tuple(index in special for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the positions of the True values."""
        del config
        return {self.key: [position for position, special in enumerate(values) if special]}


@dataclass(frozen=True)
class FirstCount:
    """A number k: the first k layers are special, such as `first_k_dense_replace`."""

    key: str

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the first k layers."""
        value = config.get(self.key)
        if not isinstance(value, int):
            return None
        return tuple(index < value for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write how many layers at the start are special."""
        number = sum(map(bool, values))
        if any(values[number:]):
            stray = next(position for position in range(number, len(values)) if values[position])
            raise ArchitectureError(
                f"is a count of layers at the start, and cannot say that layer {stray} is one of them", where=f"config field {self.key}",
                allowed=f"orders in which the first layers are those of the base's first {config.get(self.key)}",
                hint="leave these layers in front, without others between them",
            )
        return {self.key: number}


@dataclass(frozen=True)
class LastCount:
    """A number k: the last k layers are special, such as `num_kv_shared_layers`."""

    key: str

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the last k layers."""
        value = config.get(self.key)
        if not isinstance(value, int):
            return None
        return tuple(index >= count - value for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write how many layers at the end are special."""
        number = sum(map(bool, values))
        if any(values[: len(values) - number]):
            raise ArchitectureError(
                "is a count of layers at the end, and cannot say that others follow them", where=f"config field {self.key}",
                allowed="orders in which these layers stay last", hint="choose layers before them",
            )
        return {self.key: number}


@dataclass(frozen=True)
class Pattern:
    """A string with one character per layer, such as `hybrid_override_pattern`."""

    key: str

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the characters."""
        value = config.get(self.key)
        if not isinstance(value, str):
            return None
        if len(value) != count:
            raise ArchitectureError(
                f"has {len(value)} characters, but there are {count} layers", where=f"config.json, {self.key}",
                allowed="one character per layer",
            )
        return tuple(value)

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the characters."""
        del config
        return {self.key: "".join(values)}


@dataclass(frozen=True)
class ByIndex:
    """A switch that makes a layer's mathematics depend on its number, such as `scale_attn_by_inverse_layer_idx`.

    While it is on, only edits that leave every layer its number can be expressed.
    """

    key: str

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the layers' numbers if the switch is on."""
        return tuple(range(count)) if config.get(self.key) else None

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing, if every layer kept its number."""
        del config
        moved = [position for position, number in enumerate(values) if number != position]
        if moved:
            raise ArchitectureError(
                f"makes a layer depend on its number, and layer {values[moved[0]]} would become {moved[0]}",
                where=f"config field {self.key}", allowed="removing layers from the end", hint="nothing else can be expressed",
            )
        return {}
