"""How many bytes of key-value cache each token costs, layer by layer, from config and shapes alone.

A number is given only where config and tensors agree on it; everything else is unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from surgeon.core.plan.draft import Draft, base_tensors
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import Structure

_KINDS = ("layer_types", "attention_layers", "layers_block_type")
_ATTENDS = ("full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local")
_WINDOWS = {
    "sliding_attention": ("sliding_window",),
    "chunked_attention": ("attention_chunk_size",),
    "local": ("window_size",),
}
# Families of which every layer has the window, unless the config says it kind by kind.
_WINDOW_EVERYWHERE = ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_NO_CACHE = ("mlp", "experts", "router", "norm")


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer keeps per token. None: unknown. `window`: it keeps at most so many tokens."""

    bytes_per_token: int | None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class KvCache:
    """What a stack of layers keeps, by position."""

    layers: tuple[LayerCache, ...]

    @property
    def bytes_per_token(self) -> int | None:
        """The sum over all layers, as long as no window is full; None if any layer is unknown."""
        known = [layer.bytes_per_token for layer in self.layers if layer.bytes_per_token is not None]
        return sum(known) if len(known) == len(self.layers) else None


@dataclass(frozen=True, slots=True)
class _Attention:
    """What a layer's tensors say of its attention.

    widths: the outputs of its weights of two dimensions or more, by role.   dtypes: of all tensors of attention.
    """

    widths: Mapping[str, int]
    dtypes: frozenset[str]


def kv_cache(draft: Draft, stack: str | None = None) -> KvCache:
    """Return the cache of a draft's layers."""
    structure = draft.structure
    found, config = structure.stack(stack), structure.stack_config(structure.stack(stack))
    known = {layout: _attention(structure, layout) for layout in found.layouts}
    return KvCache(
        tuple(
            _layer_cache(structure, known[base_tensors(layer.source, found).layout], layer.settings, config)
            for layer in draft.layers(stack)
        )
    )


def _attention(structure: Structure, layout: Layout) -> _Attention:
    roles = structure.roles_of(layout)
    widths = {
        roles[suffix]: one.shape[1 if roles[suffix] in structure.family.transposed else 0]
        for suffix, one in layout.types.items()
        if len(one.shape) > 1
    }
    dtypes = (one.dtype for suffix, one in layout.types.items() if roles[suffix].startswith("attention"))
    return _Attention(widths, frozenset(dtypes))


def _layer_cache(
    structure: Structure, attention: _Attention, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> LayerCache:
    kind = next((settings[key] for key in _KINDS if key in settings), None)
    if settings.get("num_kv_shared_layers") is True:
        return LayerCache(0)  # it reads what an earlier layer keeps
    if not any(role.startswith("attention") for role in attention.widths):
        return LayerCache(0 if all(role.partition(".")[0] in _NO_CACHE for role in attention.widths) else None)
    if (kind is not None and kind not in _ATTENDS) or "kv_lora_rank" in config or "v_head_dim" in config:
        return LayerCache(None)  # a state of its own, or a compressed cache
    elements = _elements(structure, attention.widths, {**config, **settings})
    element_bytes = _element_bytes(structure, config, attention.dtypes)
    known = elements is not None and element_bytes is not None
    return LayerCache(elements * element_bytes if known else None, _window(structure, config, kind))  # type: ignore[operator]


def _elements(structure: Structure, outputs: Mapping[str, int], config: Mapping[str, Any]) -> int | None:
    """Return how many numbers key and value have together, if config and shapes agree."""
    heads = config.get("num_attention_heads", config.get("n_head"))
    width = config.get("hidden_size", config.get("n_embd"))
    kv_heads = config.get("num_key_value_heads", config.get("num_kv_heads"))
    if kv_heads is None:
        kv_heads = 1 if config.get("multi_query") else heads
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or not isinstance(width, int) or heads < 1:
        return None
    head_dim = config.get("head_dim") or width // heads
    if not isinstance(head_dim, int):
        return None
    each = kv_heads * head_dim
    if structure.checkpoint.config.get("quantization_config"):
        return 2 * each if "num_key_value_heads" in config else None  # packed shapes tell nothing
    expected = {"attention.key": each, "attention.value": each, "attention.qkv": heads * head_dim + 2 * each}
    seen = {role: outputs[role] for role in expected if role in outputs}
    whole = "attention.qkv" in seen or {"attention.key", "attention.value"} <= seen.keys()
    return 2 * each if whole and all(expected[role] == size for role, size in seen.items()) else None


def _element_bytes(structure: Structure, config: Mapping[str, Any], dtypes: Set[str]) -> int | None:
    top = structure.checkpoint.config
    declared = next((part[key] for part in (config, top) for key in ("dtype", "torch_dtype") if part.get(key)), None)
    if declared is not None:
        return _DTYPE_BYTES.get(str(declared).removeprefix("torch."))
    if top.get("quantization_config"):
        return None
    return _DTYPE_BYTES.get(next(iter(dtypes))) if len(dtypes) == 1 else None


def _window(structure: Structure, config: Mapping[str, Any], kind: str | None) -> int | None:
    keys = _WINDOWS.get(kind or "", ())
    if kind is None and structure.model_type in _WINDOW_EVERYWHERE and config.get("use_sliding_window") is not False:
        keys = ("sliding_window",)
    window = next((config[key] for key in keys if key in config), None)
    return window if isinstance(window, int) else None
