"""Tensors that lie in the shards though the index does not list them, where they look like parts of a layer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.placement import without
from surgeon.core.checkpoint.tensors import Shard
from surgeon.core.checkpoint.weight_files import listed

_IN_A_LAYER = re.compile(r"(.*?)\.(\d+)\.(.*)", re.DOTALL)


def odd_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the unlisted tensors whose like no other layer has, in the order of their names."""
    if not checkpoint.unlisted:
        return ()
    holders: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for name in checkpoint.tensors:
        if match := _IN_A_LAYER.fullmatch(name):
            holders[match[1], match[3]].add(match[2])
    unlisted = {name: match for name in checkpoint.unlisted if (match := _IN_A_LAYER.fullmatch(name))}
    return tuple(sorted(name for name, match in unlisted.items() if holders[match[1], match[3]] == {match[2]}))


def shards_without(checkpoint: Checkpoint, names: Sequence[str]) -> tuple[Shard, ...]:
    """Return the shards of a checkpoint, some tensors left out."""
    return tuple(part for shard in checkpoint.shards for part in without(shard, frozenset(names)))


def left_out_note(names: Sequence[str]) -> str:
    """Say which tensors count as no part of the model."""
    return f"left out, since the index does not list them and no other layer has their like: {listed(names)}"
