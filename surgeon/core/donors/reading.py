"""Another model whose layers are to stand among the base's: read as it is, refused where it is built otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.tensors import Shard
from surgeon.core.donors.donor import Donor
from surgeon.core.structure.boundary_layer_tensors import EndTensor, SharedTensors
from surgeon.core.structure.layer_dependencies import UnexplainedDifference
from surgeon.core.structure.layouts import LayerTensors, Layout, Run
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError

_NOT_OF_LAYERS = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation", "architectures",
     "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "tie_word_embeddings", "use_cache",
     "max_position_embeddings", "initializer_range", "id2label", "label2id", "auto_map", "is_llama_config",
     "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "pretraining_tp",
     "transformers.js_config", "unsloth_version", "unsloth_fixed"}
)  # fmt: skip
"""Config keys that say nothing of what a layer computes: tokens, outputs, training, who wrote the file."""


def read_donor(structure: Structure, stack: Stack, donor: Checkpoint) -> Donor:
    """Return the layers of another model, whose layers are built and configured as the base's.

    Raises:
        ArchitectureError: its config or its tensors say that they are not, or layers of this family cannot be told
            apart from where they stand; the field or the tensor is named.
    """
    _refuse_place_dependent(structure, stack)
    part = _part(donor.config, stack.config_path)
    _refuse_other_config(structure, stack, donor, part)
    found = _layers(donor, stack.prefix)
    count = _count(stack, donor, part, len(found))
    settings = _settings(stack, donor.config, part, count)
    layouts = list(stack.layouts)
    layers = tuple(_in_layout(found[index], layouts, donor, stack, index) for index in range(count))
    twins = tuple(_twin(stack, layer.layout, setting) for layer, setting in zip(layers, settings, strict=True))
    return Donor(donor, layers, settings, twins)


def _refuse_place_dependent(structure: Structure, stack: Stack) -> None:
    quantised = structure.quantisation
    if quantised is not None and not quantised.declared:
        raise ArchitectureError(
            "says how the weights are quantised, and may say otherwise of another model's", where=quantised.where,
            allowed="models whose config.json says it", hint="dequantise both models first",
        )  # fmt: skip
    fields = [field for field in stack.fields if isinstance(field, EndTensor | SharedTensors | UnexplainedDifference)]
    if fields or (structure.sliced and stack.name == structure.default_stack):
        where = fields[0].key if fields else f"tensor {next(iter(structure.sliced))!r}"
        raise ArchitectureError(
            "belongs to layers by where they stand, and another model's layers would come without",
            where=where, hint="layers of such models cannot be taken over",
        )  # fmt: skip


def _part(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    part: Any = config
    for key in path:
        part = part.get(key) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _refuse_other_config(structure: Structure, stack: Stack, donor: Checkpoint, part: Mapping[str, Any]) -> None:
    own = structure.stack_config(stack)
    described = {key for field in stack.fields for key in (field.key, *field.replaces)}
    ignored = _NOT_OF_LAYERS | set(stack.count_keys) | described - {"quantization_config"}
    pairs = [(key, own.get(key), part.get(key)) for key in sorted({*own, *part} - ignored)]
    root = structure.checkpoint.config
    pairs = [(key, root.get(key), donor.config.get(key)) for key in ("model_type", "quantization_config")] + pairs
    for key, before, other in pairs:
        if (before or None) != (other or None):
            raise ArchitectureError(
                f"is {_text(other)} in {donor.path} and {_text(before)} in the base", where=f"config field {key}",
                allowed="layers of a model that is configured alike", hint="they would not compute what they do there",
            )  # fmt: skip


def _text(value: Any) -> str:
    return "absent" if value is None else str(value)


def _layers(donor: Checkpoint, prefix: str) -> dict[int, dict[str, Run]]:
    """Return where each tensor of each layer is, by its name within the layer."""
    pattern = re.compile(rf"({re.escape(prefix)}\.(\d+)\.)(.+)")
    found: dict[int, dict[str, Run]] = {}
    for shard, at, match in _matches(donor, pattern):
        found.setdefault(int(match[2]), {})[match[3]] = Run(shard, at, at + 1, match[1])
    return found


def _matches(donor: Checkpoint, pattern: re.Pattern[str]) -> Iterator[tuple[Shard, int, re.Match[str]]]:
    for shard in donor.shards:
        for at, name in enumerate(shard.names):
            if match := pattern.fullmatch(name):
                yield shard, at, match


def _count(stack: Stack, donor: Checkpoint, part: Mapping[str, Any], found: int) -> int:
    counts = {part.get(key) for key in stack.count_keys} or {found}
    if len(counts) != 1 or not found or found < max((one for one in counts if isinstance(one, int)), default=found + 1):
        raise ArchitectureError(
            f"counts {', '.join(map(str, counts))} layers, and {found} are stored as {stack.prefix}.N",
            where=str(donor.path), hint="check the other model: surgeon inspect",
        )  # fmt: skip
    return int(counts.pop())  # type: ignore[arg-type]


def _settings(
    stack: Stack, root: Mapping[str, Any], part: Mapping[str, Any], count: int
) -> tuple[Mapping[str, Any], ...]:
    readings = {field.key: field.read(part, count) for field in stack.fields}
    for twin in stack.twins:
        said = {twin.setting(field): field.read(_part(root, twin.path), count) for field in twin.fields}
        readings |= {key: values and tuple((value,) for value in values) for key, values in said.items()}
    silent = next((key for key, values in readings.items() if values is None), None)
    if silent is not None:
        raise ArchitectureError(
            "says nothing of the other model's layers, and something of the base's", where=f"config field {silent}",
            hint="layers can be taken over only between models that are configured alike",
        )  # fmt: skip
    return tuple({key: values[index] for key, values in readings.items() if values} for index in range(count))


def _in_layout(
    runs: Mapping[str, Run], layouts: Sequence[Layout], donor: Checkpoint, stack: Stack, index: int
) -> LayerTensors:
    """Return a layer in the layout of the base that has its tensors."""
    types = {suffix: run.types[0] for suffix, run in runs.items()}
    for layout in layouts:
        if dict(layout.types) == types:
            return LayerTensors(layout, [runs[suffix] for suffix in layout.types])
    own = layouts[0].types
    odd = next((one for one in sorted({*own, *types}) if own.get(one) != types.get(one)), "")
    here, there = own.get(odd), types.get(odd)
    raise ArchitectureError(
        f"is {_type(there)} in {donor.path} and {_type(here)} in the base", where=stack.tensor_name(index, odd),
        allowed="layers with the base's tensors, dtypes and shapes", hint="convert the other model, or choose another",
    )  # fmt: skip


def _type(one: Any) -> str:
    return "absent" if one is None else f"{one.dtype} {list(one.shape)}"


def _twin(stack: Stack, layout: Layout, setting: Mapping[str, Any]) -> int:
    """Return the number of a base layer that is built and configured alike; -1 where there is none."""
    alike = (at for at, one in enumerate(stack.layers) if one.layout is layout and stack.settings[at] == setting)
    return next(alike, -1)
