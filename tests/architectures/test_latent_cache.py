"""What is said of caches of latents is what transformers keeps, for every type that has them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.kv_cache import KvCache, kv_cache
from tests.architectures.building import causal_types, small_config, tiny_model
from tests.architectures.settings import UNBUILDABLE

KNOWN = ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3", "youtu")
IN_PART = ("bailing_hybrid", "kimi_linear")
"""Some layers keep a state of their own instead."""
UNKNOWN = ("axk2", "deepseek_v32", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4")
"""Some layers, or all, choose the tokens they look at, and keep keys for that besides."""
_TOKENS = 7


def test_no_type_with_latents_is_left_out() -> None:
    """A new one has to be looked at."""
    types = {
        name for name in causal_types() if any(field.name == "kv_lora_rank" for field in fields(CONFIG_MAPPING[name]))
    }
    assert types - UNBUILDABLE.keys() == {*KNOWN, *IN_PART, *UNKNOWN} - {"dots3_note"}


@pytest.mark.parametrize("model_type", [*KNOWN, *IN_PART, *UNKNOWN])
def test_what_is_known_is_what_transformers_keeps(model_type: str, tmp_path: Path) -> None:
    """Number by number, counted in the cache after a run; nothing is told of layers that keep more than latents."""
    model: Any = tiny_model(small_config(model_type))
    model.save_pretrained(tmp_path)
    told = kv_cache(draft_of(read_structure(open_checkpoint(tmp_path))))
    with torch.no_grad():
        kept = model(torch.full((1, _TOKENS), 3), use_cache=True).past_key_values
    per_layer = _kept_bytes(kept, len(told.layers))
    known = [layer.bytes_per_token for layer in told.layers]
    assert all(number in (None, kept) for number, kept in zip(known, per_layer, strict=True))
    assert _share_known(told) == (1 if model_type in KNOWN else 0 if model_type in UNKNOWN else None)


def _kept_bytes(cache: Any, layers: int) -> list[int | None]:
    """Return what each layer keeps per token; None for one that keeps something else."""
    each = len(cache.layers) // layers
    found: list[int | None] = []
    for number in range(layers):
        parts = [vars(one) for one in cache.layers[number * each : (number + 1) * each]]
        tensors = [(name, one) for part in parts for name, one in part.items() if torch.is_tensor(one)]
        plain = tensors and all(name in ("keys", "values") and one.shape[2] == _TOKENS for name, one in tensors)
        found.append(sum(one.nbytes for _, one in tensors) // _TOKENS if plain else None)
    return found


def _share_known(told: KvCache) -> int | None:
    """Return 1 where all layers are known, 0 where none is, None in between."""
    known = {layer.bytes_per_token is not None for layer in told.layers}
    return int(known.pop()) if len(known) == 1 else None
