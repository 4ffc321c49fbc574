"""A directory that PEFT has saved: `adapter_config.json` and `adapter_model.safetensors`, from headers alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.headers import read_header
from surgeon.core.checkpoint.model_location import ADAPTER_CONFIG as CONFIG
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.interchange.adapter_targets import settings_of
from surgeon.errors import CheckpointError

WEIGHTS = "adapter_model.safetensors"
_LORA = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_OTHERS: tuple[tuple[str, str], ...] = (
    (r"lora_magnitude_vector", "DoRA: a magnitude for each output"),
    (r"lora_embedding_[AB]$", "a LoRA on an embedding"),
    (r"trainable_tokens_", "trainable tokens: rows of the embedding"),
    (r"lora_[AB]\.bias$", "a bias of an adapter"),
    (r"\.(?:base_layer\.)?bias$", "a bias of the base that was trained with it"),
    (r"lora_", "a LoRA of another kind"),
    (r"", "a whole module that was trained with it (modules_to_save)"),
)
"""(regular expression for a tensor's name, what such a tensor is), tried in order."""
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq")
"""Ways to start an adapter that change the base's weights too, so that it means nothing on the base as it is."""
_WITHOUT_EFFECT = ("base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type", "auto_mapping")


@dataclass(frozen=True)
class LoraPair:
    """A (rank, inputs) and B (outputs, rank) of one module, and the alpha of which alpha / rank is their scale."""

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank."""
        return self.a.shape[0]


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter on disk.

    pairs: by module, as the loaded base names it.   others: what else it holds, by tensor, in words.
    """

    path: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    others: Mapping[str, str]
    fingerprint: str

    @property
    def base(self) -> str | None:
        """The name of its base model."""
        return self.config.get("base_model_name_or_path")

    @property
    def not_carried(self) -> dict[str, str]:
        """What cannot be carried to an edited model, by the config key or the tensor that says it."""
        found = dict(self.others)
        start = str(self.config.get("init_lora_weights", True)).lower()
        if start.startswith(_CHANGED_BASES):
            found["init_lora_weights"] = f"it was started by {start}, which changed the base's weights too"
        if self.config.get("layer_replication"):
            found["layer_replication"] = "it repeats layers of the base"
        if self.config.get("alora_invocation_tokens"):
            found["alora_invocation_tokens"] = "it acts only behind certain tokens"
        return found


def open_adapter(path: Path) -> PeftAdapter:
    """Read an adapter's config and header.

    Raises:
        CheckpointError: it is none, is a pickle, or contradicts itself.
    """
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"there is no {CONFIG}", where=str(path), allowed="a directory that PEFT has saved")
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"there is no {WEIGHTS}", where=str(path), allowed="an adapter in safetensors",
            hint="save it again with PEFT: model.save_pretrained(DIR)",
        )  # fmt: skip
    stamps = tuple((path / name).stat().st_mtime_ns for name in (CONFIG, WEIGHTS))
    return _opened(path.absolute(), stamps)


@lru_cache(maxsize=4)
def _opened(path: Path, stamps: tuple[int, ...]) -> PeftAdapter:
    del stamps
    config = _read_config(path / CONFIG)
    tensors = read_header(path / WEIGHTS).tensors
    parts: dict[str, dict[str, Tensor]] = {}
    others: dict[str, str] = {}
    for tensor in tensors:
        if match := _LORA.fullmatch(tensor.name):
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            others[tensor.name] = next(what for pattern, what in _OTHERS if re.search(pattern, tensor.name))
    pairs = {module: _pair(module, found, config, path) for module, found in parts.items()}
    return PeftAdapter(path, config, pairs, others, _fingerprint(path / WEIGHTS, config))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"is not valid JSON: {error}", where=str(path), hint="download it again") from error
    kind = str(config.get("peft_type", "")).rpartition(".")[2] if isinstance(config, dict) else ""
    if kind != "LORA":
        raise CheckpointError(f"is of type {kind or 'none'}", where=f"{path}, peft_type", allowed="LORA")
    return config  # type: ignore[no-any-return]


def _pair(module: str, found: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> LoraPair:
    where = f"{path / WEIGHTS}, {module}"
    if found.keys() != {"A", "B"} or {len(one.shape) for one in found.values()} != {2}:
        raise CheckpointError("has not both A and B, as matrices", where=where, hint="save the adapter again")
    a, b = found["A"], found["B"]
    rank, alpha = settings_of(config, module)
    if not a.shape[0] == b.shape[1] == rank:
        raise CheckpointError(
            f"A is {list(a.shape)} and B {list(b.shape)}, and the config says rank {rank}", where=where,
            hint="the config and the weights disagree",
        )  # fmt: skip
    return LoraPair(a, b, alpha)


def _fingerprint(weights: Path, config: Mapping[str, Any]) -> str:
    """Return sixteen hex digits that name the adapter: every byte of it, and what its config says of its function."""
    said = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    digest = hashlib.sha256(msgspec.json.encode(_sorted_lists(said), order="deterministic"))
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _sorted_lists(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config in which lists of names, which PEFT writes in any order, are sorted."""
    return {
        key: sorted(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value
        for key, value in config.items()
    }
