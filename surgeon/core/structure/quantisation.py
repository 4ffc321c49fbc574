"""Whether the weights of a checkpoint are quantised, and where that is said: in a config, a side file, or by tensors.

One description for all who ask. Whether transformers can load it is the backend's to say; here is what it would see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.tensors import TensorType
from surgeon.core.structure.companions import packed_weights
from surgeon.errors import ArchitectureError

FIELDS = ("quantization_config", "compression_config", "quantization")
"""Config fields: of transformers, of older compressed-tensors, of MLX."""
FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
"""Of ModelOpt, AutoGPTQ and AWQ."""
DESCRIPTION = "quant_model_description"
"""What the names of msModelSlim's files begin with; they say of each tensor what it is."""
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


class Quantisation(msgspec.Struct, frozen=True):
    """How weights are quantised.

    method: its name, such as `fp8`.   where: what says so: a config field, a file, or the first tensor.
    declared: whether it is said where transformers looks for it.   settings: what is said.
    """

    method: str
    where: str
    declared: bool = False
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def block_size(self) -> tuple[int, int] | None:
        """Rows and columns of the blocks that have a scale each, as transformers or compressed-tensors says it."""
        groups = self.settings.get("config_groups")
        said = [self.settings.get("weight_block_size")]
        for group in groups.values() if isinstance(groups, Mapping) else ():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            said.append(weights.get("block_structure") if isinstance(weights, Mapping) else None)
        sizes = {tuple(one) for one in said if isinstance(one, list) and len(one) == 2}
        return sizes.pop() if len(sizes) == 1 else None

    def refusal(self, what: str, allowed: str = "") -> ArchitectureError:
        """Return the error that refuses such weights; `what` says why, such as `training needs their values`."""
        return ArchitectureError(
            f"the weights are quantised ({self.method}), and {what}",
            where=self.where,
            allowed=allowed or "moving whole layers: prune, reorder, expand with init: duplicate",
            hint="dequantise the checkpoint first",
        )


def read_quantisation(checkpoint: Checkpoint) -> Quantisation | None:
    """Return how the weights of a checkpoint are quantised; None where nothing says that they are."""
    whole = {name: one for shard in checkpoint.shards for name, one in zip(shard.names, shard.types, strict=True)}
    return find_quantisation(checkpoint, [("", whole)])


def find_quantisation(
    checkpoint: Checkpoint, groups: Iterable[tuple[str, Mapping[str, TensorType]]]
) -> Quantisation | None:
    """Return the same from some of the tensors: groups of them, each with what its names begin with.

    The config is asked first, then files beside it, then tensors.
    """
    found = next(_in_config(checkpoint.config, ()), None) or next(_in_files(checkpoint), None)
    if found is not None:
        return found
    for prefix, types in groups:
        for weight in packed_weights(types).values():
            shown = next(iter(weight.parts.values()), weight.stored)
            dtype = types[weight.stored].dtype
            return Quantisation(f"{dtype}, no config says how", f"tensor {prefix + shown!r}")
    return None


def _in_config(part: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Quantisation]:
    for field in FIELDS:
        said = part.get(field)
        if said and isinstance(said, Mapping | str):
            settings = dict(said) if isinstance(said, Mapping) else {"quant_method": said}
            looked_for = field == FIELDS[0] and (not path or path[0] in _TEXT_CONFIGS)
            yield Quantisation(
                _method(field, settings),
                f"config field {'.'.join((*path, field))}",
                looked_for and _has_method(settings),
                settings,
            )
    for key, inner in part.items():
        if isinstance(inner, Mapping) and key not in FIELDS:
            yield from _in_config(inner, (*path, str(key)))


def _has_method(settings: Mapping[str, Any]) -> bool:
    return any(settings.get(key) for key in ("quant_method", "load_in_4bit", "load_in_8bit"))


def _method(field: str, settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if settings.get("load_in_4bit"):
        return f"bitsandbytes {settings.get('bnb_4bit_quant_type', 'fp4')}"
    if settings.get("load_in_8bit"):
        return "bitsandbytes int8"
    if method is None and field == "compression_config":
        method = "compressed-tensors"
    if method is None and "group_size" in settings:
        method = f"MLX, {settings.get('bits')} bits"
    more = settings.get("format") or settings.get("quant_algo") or settings.get("quant_type")
    return " ".join(str(part) for part in (method or "of unknown method", more) if part)


def is_quantisation_file(name: str) -> bool:
    """Whether a file beside the weights says how they are quantised, by its name."""
    return name in FILES or (name.startswith(DESCRIPTION) and name.endswith(".json"))


def quantisation_documents(checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    """Return (name, content) of the files that say how weights are quantised, the part of the config first."""
    said = {field: checkpoint.config[field] for field in FIELDS if field in checkpoint.config}
    said |= {
        key: {field: part[field] for field in FIELDS if field in part}
        for key, part in checkpoint.config.items()
        if isinstance(part, Mapping) and key in _TEXT_CONFIGS
    }
    files = [(name, checkpoint.document(name)) for name in checkpoint.side_files if is_quantisation_file(name)]
    return [("config.json", said), *files]


def _in_files(checkpoint: Checkpoint) -> Iterator[Quantisation]:
    for name in checkpoint.side_files:
        if not is_quantisation_file(name):
            continue
        said = checkpoint.document(name)
        method = _method_of_file(name, said) if isinstance(said, Mapping) else None
        if method:
            yield Quantisation(method, name, settings=dict(said))


def _method_of_file(name: str, said: Mapping[str, Any]) -> str | None:
    """Return the method that a file states; None where it says nothing of weights, but of the cache alone perhaps."""
    if name.startswith(DESCRIPTION):
        kinds = sorted({str(kind) for kind in said.values() if str(kind) not in ("FLOAT", "FP16", "BF16")})
        return f"msModelSlim {kinds[0]}" if kinds else None
    inner = said.get("quantization")
    if isinstance(inner, Mapping):
        producer = said.get("producer")
        by = str(producer.get("name", "modelopt")) if isinstance(producer, Mapping) else "modelopt"
        return f"{by} {inner['quant_algo']}" if inner.get("quant_algo") else None
    if said.get("quant_method"):
        return str(said["quant_method"])
    if "w_bit" in said or "q_group_size" in said:
        return "awq"
    return "gptq" if "bits" in said else None
