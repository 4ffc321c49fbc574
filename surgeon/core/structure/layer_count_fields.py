"""Config fields that describe layers by a number: how many at the start or the end, or every how many.

Such a number cannot say everything. What it cannot say is refused by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from surgeon.core.structure.layer_fields import Config
from surgeon.errors import ArchitectureError


class FirstCount(msgspec.Struct, frozen=True):
    """A number k: the first k layers are special, such as `first_k_dense_replace`."""

    key: str
    default: int | None = None
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the first k layers."""
        value = config.get(self.key)
        value = self.default if value is None else value
        return tuple(index < value for index in range(count)) if isinstance(value, int) else None

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write how many layers at the start are special."""
        del config
        number = sum(map(bool, values))
        if any(values[number:]):
            stray = next(position for position in range(number, len(values)) if values[position])
            raise ArchitectureError(
                f"is a count of layers at the start, and cannot say that layer {stray} is one of them",
                where=f"config field {self.key}",
                allowed="orders in which these layers come first",
                hint="leave them in front, without others between them",
            )
        return {self.key: number}


class LastCount(msgspec.Struct, frozen=True):
    """A number k: the last k layers are special, such as `num_kv_shared_layers`."""

    key: str
    default: int | None = None
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the last k layers."""
        value = config.get(self.key)
        value = self.default if value is None else value
        return tuple(index >= count - value for index in range(count)) if isinstance(value, int) else None

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write how many layers at the end are special."""
        del config
        number = sum(map(bool, values))
        if any(values[: len(values) - number]):
            raise ArchitectureError(
                "is a count of layers at the end, and cannot say that others follow them",
                where=f"config field {self.key}",
                allowed="orders in which these layers stay last",
                hint="choose layers before them",
            )
        return {self.key: number}


class Period(msgspec.Struct, frozen=True):
    """Two numbers: every p-th layer is special, beginning at an offset, such as `attn_layer_period`.

    After an edit another period and offset are looked for that say the same.
    """

    key: str
    offset_key: str
    default: int
    default_offset: int
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the special layers."""
        period, offset = config.get(self.key, self.default), config.get(self.offset_key, self.default_offset)
        return tuple(index % period == offset for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the old numbers if they fit, else the first that do."""
        count = len(values)
        old = (config.get(self.key, self.default), config.get(self.offset_key, self.default_offset))
        # A period longer than the model puts the only special layer anywhere, or, with the last offset, nowhere.
        every = [(period, offset) for period in range(1, count + 2) for offset in range(period)]
        for period, offset in (old, *every):
            if all((index % period == offset) == bool(value) for index, value in enumerate(values)):
                return {self.key: period, self.offset_key: offset}
        special = [position for position, value in enumerate(values) if value]
        raise ArchitectureError(
            f"says that every so many layers are special, and cannot say that {special} are",
            where=f"config field {self.key}",
            allowed="edits after which these layers are equally far apart",
            hint=f"remove whole periods of {old[0]} layers",
        )
