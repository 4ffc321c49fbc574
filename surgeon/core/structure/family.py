"""What differs between model families, as data: how layers are silenced, which stacks and slices there are, names."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from surgeon.core.structure.layer_fields import LayerField
from surgeon.errors import ArchitectureError


class Silence(msgspec.Struct, frozen=True):
    """How a layer is made an exact identity: every tensor of `role` becomes the constant `value`.

    Zero for a projection that writes into the residual stream. For a family that normalises a sublayer's output
    before adding it, the norm's weight instead: a zeroed projection would put the norm at 0, where its Jacobian is
    about 1/sqrt(eps) and the first training step explodes. Where the norm multiplies by 1 + w the value is -1.
    """

    role: str
    value: float = 0.0


class StackRule(msgspec.Struct, frozen=True):
    """Layers that have a count of their own: what their prefix looks like, and the config keys of the count.

    implied: keys of another count that holds for these layers too where none of their own is there.
    """

    name: str
    prefix: str
    count_keys: tuple[str, ...]
    implied: tuple[str, ...] = ()


class OutsideSlices(msgspec.Struct, frozen=True):
    """Tensors outside the layers that hold one slice for each layer.

    pattern: a regular expression for their names.   axis: the dimension along which the slices follow each other.
    width_key: the config key of a slice's width.
    """

    pattern: str
    axis: int
    width_key: str


class PartRules(msgspec.Struct, frozen=True):
    """What names and shapes do not tell of the parts of a family's layers.

    counted_by: the config field that counts a kind of part, where the value of a field does not tell which it is.
    halves: roles of matrices of which each half leads into every neuron, as gate and up in one do.
    flat_experts: whether stacked experts are one matrix, the rows of all of them one after another.
    reads_head_dim: whether transformers reads the width of a head from the config, so that heads can be fewer.
    refused: (config field, why what is in its layers cannot be cut or silenced), if so.
    """

    counted_by: Mapping[str, str] = msgspec.field(default_factory=dict)
    halves: frozenset[str] = frozenset()
    flat_experts: bool = False
    reads_head_dim: bool = False
    refused: tuple[str, str] | None = None

    def require(self) -> None:
        """Refuse a family of which layers are whole or not at all.

        Raises:
            ArchitectureError: named by the config field that is the reason.
        """
        if self.refused is not None:
            where, why = self.refused
            raise ArchitectureError(
                why, where=f"config field {where}", allowed="whole layers: prune, reorder, expand with init: duplicate"
            )


class Family(msgspec.Struct, frozen=True):
    """What differs between model families.

    model_types: values of the config's `model_type` it covers; empty for the general one.
    roles: (regular expression for the tensor name within its layer, role), tried before the shared rules.
    fields: per-layer config fields beyond the shared ones; the same key replaces the shared one.
    silences: alternatives, best first; the first whose every role occurs in a layer is used for it. Without any, all
        tensors that write into the residual stream are set to 0, if the layer holds nothing whose role is unknown.
    no_identity: why no layer of this family can be made an identity, if so.
    unreadable: (config field, why its layers cannot be told from it), if so.
    renamed: whether transformers changes names in ways that `in_memory` does not tell, so that none can be selected.
    outside_slices: tensors outside the layers that hold one slice for each layer of the default stack.
    stacks: stacks with a count of their own, if the shared rules do not find them.
    parts: what is special where its layers are cut into experts, neurons or heads.
    transposed: roles stored as (in, out) rather than (out, in), as GPT-2's Conv1D does.
    fused: role to the roles it holds, in order, along its output dimension.
    fused_by_head: whether query, key and value follow each other head by head rather than one after another.
    in_memory: (regular expression, replacement) for tensor names that transformers changes when it loads them, such
        as experts that are stored one by one and stacked in memory.
    """

    model_types: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    fields: tuple[LayerField, ...] = ()
    silences: tuple[tuple[Silence, ...], ...] = ()
    transposed: frozenset[str] = frozenset()
    fused: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    fused_by_head: bool = False
    in_memory: tuple[tuple[str, str], ...] = ()
    no_identity: str = ""
    unreadable: tuple[str, str] | None = None
    renamed: bool = False
    outside_slices: tuple[OutsideSlices, ...] = ()
    stacks: tuple[StackRule, ...] = ()
    parts: PartRules = PartRules()
