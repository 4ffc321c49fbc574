"""What ties a layer to its number or to another layer. None of it can be written; it can only be found intact.

Each raises ArchitectureError when an edit would break it, naming the config field or the thing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec

from surgeon.core.structure.layer_fields import Config
from surgeon.errors import ArchitectureError


class IndexDependent(msgspec.Struct, frozen=True):
    """Something that makes a layer's mathematics depend on its number, such as `scale_attn_by_inverse_layer_idx`.

    `key` is a config field, or says what it is. `when` tells whether it is on; without it, it is on where the field
    is true. While it is on, only edits that leave every layer its number can be expressed, and where `by_count`, its
    number of layers.
    """

    key: str
    when: Callable[[Config], bool] | None = None
    by_count: bool = False
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the layers' numbers, and their count if it matters, where it is on."""
        on = self.when(config) if self.when else bool(config.get(self.key))
        return tuple((index, count) for index in range(count)) if on else None

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing, if every layer kept its number."""
        del config
        moved = [position for position, (number, _) in enumerate(values) if number != position]
        if moved or (self.by_count and len(values) != values[0][1]):
            what = (
                f"layer {values[moved[0]][0]} would become {moved[0]}"
                if moved
                else f"there would be {len(values)} layers"
            )
            raise ArchitectureError(
                f"makes a layer depend on its number, and {what}",
                where=self.key,
                allowed="freeze and masked_lora" if self.by_count else "removing layers from the end",
                hint="nothing else can be expressed",
            )
        return {}


class ReadsEarlierLayer(msgspec.Struct, frozen=True):
    """Layers that use what an earlier one computed, as the config's `field` says, such as `num_kv_shared_layers`.

    `lenders` gives, for each layer, (group, whether it borrows): a borrower takes from the nearest layer of its group
    before it that does not. An edit is right if each borrower still finds the same lender.
    """

    key: str
    field: str
    lenders: Callable[[Config, int], Sequence[tuple[Hashable, bool]] | None]
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return (group, own number, the lender's number or None) for each layer."""
        groups = self.lenders(config, count)
        if groups is None or not any(borrows for _, borrows in groups):
            return None
        found, last = [], dict[Hashable, int]()
        for index, (group, borrows) in enumerate(groups):
            if not borrows:
                last[group] = index
            found.append((group, index, last.get(group, -1) if borrows else None))
        return tuple(found)

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing, if every borrower has its lender, and every lender is there once."""
        del config
        last: dict[Hashable, int] = {}
        lent: set[int] = set()
        for position, (group, number, lender) in enumerate(values):
            if lender is None:
                # A second one, even an identity, would lend what it makes of another input.
                last[group] = -1 if number in lent else number
                lent.add(number)
            elif last.get(group) != lender:
                raise ArchitectureError(
                    f"layer {position} uses what layer {lender} of the base computed, and would use another's",
                    where=f"config field {self.field}",
                    allowed=f"edits that leave layer {lender} once, and nearest before it",
                    hint=f"do not remove, repeat or move layer {lender}",
                )
        return {}


class OrderedLayers(msgspec.Struct, frozen=True):
    """Layers that are built by their rank among themselves: the first of them, the second, and so on.

    `members` gives their numbers. They may move, but none may overtake another, be repeated or be left out; only where
    not `complete` may the last ones go.
    """

    field: str
    key: str
    members: Callable[[Config, int], Sequence[int] | None]
    complete: bool = False
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return (rank, how many there are) of each member, None for the other layers."""
        members = list(self.members(config, count) or ())
        found = tuple((members.index(index), len(members)) if index in members else None for index in range(count))
        return found if members else None

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing, if the members are in order."""
        del config
        members = [value for value in values if value is not None]
        ranks = [rank for rank, _ in members]
        if ranks != list(range(len(ranks))) or (self.complete and len(ranks) != (members[0][1] if members else -1)):
            raise ArchitectureError(
                f"{self.key}: they would be {ranks} of the base's",
                where=f"config field {self.field}",
                allowed="edits that keep all of them once and in order"
                if self.complete
                else "edits that keep the first of them in order",
                hint="choose other layers",
            )
        return {}


class TwoCounts(msgspec.Struct, frozen=True):
    """Two parts of a config that count the same layers, and differ: whoever reads it may believe either.

    fields: what they are called.   counts: what they say.
    """

    fields: tuple[str, str]
    counts: tuple[int, int]
    key: str = "two layer counts"
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the layers' numbers."""
        del config
        return tuple((index,) for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing, if no layer moved."""
        del config
        if list(values) != [(index,) for index in range(self.counts[0])]:
            raise ArchitectureError(
                f"count the same layers, and say {self.counts[0]} and {self.counts[1]}",
                where=f"config fields {self.fields[0]} and {self.fields[1]}",
                allowed="one count, or the same twice",
                hint="correct config.json, or take out the one that transformers does not read",
            )
        return {}


class UnexplainedDifference(msgspec.Struct, frozen=True):
    """Layers that are built differently although every known config field says the same about them.

    What decides it is unknown, most likely the position, so no edit is safe that moves any of them.
    """

    builds: tuple[Hashable, ...]
    key: str = "names and shapes of tensors"
    replaces: tuple[str, ...] = ()

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return how each layer is built."""
        del config, count
        return self.builds

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write nothing, if each position is built as it was."""
        del config
        if tuple(values) != self.builds:
            odd = next(index for index, build in enumerate(self.builds) if build != self.builds[0])
            raise ArchitectureError(
                f"layers 0 and {odd} are built differently, and no config field known to surgeon says so",
                where=self.key,
                allowed="edits that leave the number of layers and how each is built",
                hint="`surgeon inspect MODEL --check` tells whether a tensor is missing; if none is, what decides it "
                "must be declared for this model type in surgeon/architectures",
            )
        return {}
