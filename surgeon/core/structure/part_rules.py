"""What differs between families where layers are cut into parts: experts, neurons of the MLP, key-value heads."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class PartRules(msgspec.Struct, frozen=True):
    """What names and shapes do not tell of the parts of a family's layers.

    counted_by: the config field that counts a kind of part, where the value of a field does not tell which it is.
    halves: roles of matrices of which each half leads into every neuron, as gate and up in one do.
    flat_experts: whether stacked experts are one matrix, the rows of all of them one after another.
    reads_head_dim: whether transformers reads the width of a head from the config, so that heads can be fewer.
    """

    counted_by: Mapping[str, str] = msgspec.field(default_factory=dict)
    halves: frozenset[str] = frozenset()
    flat_experts: bool = False
    reads_head_dim: bool = False
