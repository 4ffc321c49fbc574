"""What differs between families where layers are cut into parts: experts, neurons of the MLP, key-value heads."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class PartRules(msgspec.Struct, frozen=True):
    """What names and shapes do not tell of the parts of a family's layers.

    uncuttable: why its experts, neurons or heads cannot be cut, by the kind of part.
    counted_by: the config field that counts a kind of part, where the value of a field does not tell which it is.
    halves: roles of matrices of which each half leads into every neuron, as gate and up in one do.
    flat_experts: whether stacked experts are one matrix, the rows of all of them one after another.
    other_choices: whether a router has rows behind those of the experts, for choices that are none.
    expert_groups: how many groups experts form and how many of these a token may use, where the config does not say it.
    reads_head_dim: whether transformers reads the width of a head from the config, so that heads can be fewer.
    """

    uncuttable: Mapping[str, str] = msgspec.field(default_factory=dict)
    counted_by: Mapping[str, str] = msgspec.field(default_factory=dict)
    halves: frozenset[str] = frozenset()
    flat_experts: bool = False
    other_choices: bool = False
    expert_groups: tuple[int, int] | None = None
    reads_head_dim: bool = False
