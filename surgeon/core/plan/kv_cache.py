"""How many bytes of key-value cache each token costs, layer by layer, from config and shapes alone.

A number is given only where config and tensors agree on it; everything else is unknown, never guessed.

Of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) the latent is counted: `kv_lora_rank` numbers that keys
and values are made of, and `qk_rope_head_dim` of the key with positions, shared by all heads. So do vLLM, SGLang and
transformers 5.23 store it; what keeps the expanded keys and values, as older implementations do, takes more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

import msgspec

from surgeon.core.checkpoint.tensors import TensorType
from surgeon.core.plan.draft import Draft, Layer
from surgeon.core.plan.layer_layouts import config_of, layout_of
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
_LATENT = re.compile(r"((?:.+\.)?kv_a_proj_with_mqa)\.(.+)")
"""Makes the latent and the key with positions. All families with latents in transformers 5.23 call it so."""
LATENT_NOTE = (
    "the KV cache is that of the latents, as vLLM, SGLang and transformers 5.23 keep it: kv_lora_rank and "
    "qk_rope_head_dim numbers for each attention; expanded keys and values take more"
)


class LayerCache(msgspec.Struct, frozen=True):
    """What one layer keeps per token. None: unknown. `window`: it keeps at most so many tokens.

    latent: whether it is counted as latents.
    """

    bytes_per_token: int | None
    window: int | None = None
    latent: bool = False


class KvCache(msgspec.Struct, frozen=True):
    """What a stack of layers keeps, by position."""

    layers: tuple[LayerCache, ...]

    @property
    def bytes_per_token(self) -> int | None:
        """The sum over all layers, as long as no window is full; None if any layer is unknown."""
        known = [layer.bytes_per_token for layer in self.layers if layer.bytes_per_token is not None]
        return sum(known) if len(known) == len(self.layers) else None


class _Attention(msgspec.Struct, frozen=True):
    """What a layer's tensors say of its attention.

    widths: the outputs of its weights of two dimensions or more, by role.   dtypes: of all tensors of attention.
    latents: the tensors of each projection that makes latents.
    indexed: whether it has an indexer, which keeps keys of its own, in each program in another form.
    """

    widths: Mapping[str, int]
    dtypes: frozenset[str]
    latents: tuple[Mapping[str, TensorType], ...]
    indexed: bool


def kv_cache(draft: Draft, stack: str | None = None) -> KvCache:
    """Return the cache of a draft's layers."""
    structure = draft.structure
    found, known = structure.stack(stack), dict[Layout, _Attention]()

    def layer_cache(layer: Layer) -> LayerCache:
        layout = layout_of(structure, found, layer.source)
        if layout not in known:
            known[layout] = _attention(structure, layout)
        return _layer_cache(structure, known[layout], layer.settings, config_of(structure, found, layer.source))

    return KvCache(tuple(map(layer_cache, draft.layers(stack))))


def _attention(structure: Structure, layout: Layout) -> _Attention:
    roles = structure.roles_of(layout)
    widths = {
        roles[suffix]: one.shape[1 if roles[suffix] in structure.family.transposed else 0]
        for suffix, one in layout.types.items()
        if len(one.shape) > 1
    }
    dtypes = (one.dtype for suffix, one in layout.types.items() if roles[suffix].startswith("attention"))
    latents: dict[str, dict[str, TensorType]] = {}
    for suffix, one in layout.types.items():
        if match := _LATENT.fullmatch(suffix):
            latents.setdefault(match[1], {})[match[2]] = one
    indexed = any("indexer" in suffix for suffix in layout.types)
    return _Attention(widths, frozenset(dtypes), tuple(latents.values()), indexed)


def _layer_cache(
    structure: Structure, attention: _Attention, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> LayerCache:
    kind = next((settings[key] for key in _KINDS if key in settings), None)
    if settings.get("num_kv_shared_layers") is True:
        return LayerCache(0)  # it reads what an earlier layer keeps
    if not any(role.startswith("attention") for role in attention.widths):
        return LayerCache(0 if all(role.partition(".")[0] in _NO_CACHE for role in attention.widths) else None)
    if kind is not None and kind not in _ATTENDS:
        return LayerCache(None)  # a state of its own
    latent = "kv_lora_rank" in config or "v_head_dim" in config
    if latent:
        elements = _latent_elements(structure, attention, {**config, **settings})
    else:
        elements = _elements(structure, attention.widths, {**config, **settings})
    element_bytes = _element_bytes(structure, config, attention.dtypes)
    if elements is None or element_bytes is None:
        return LayerCache(None, None if latent else _window(structure, config, kind))
    return LayerCache(elements * element_bytes, _window(structure, config, kind), latent)


def _latent_elements(structure: Structure, attention: _Attention, config: Mapping[str, Any]) -> int | None:
    """Return how many numbers the latents of a layer have, if config and shapes agree on each of them."""
    rank, rope = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    if not isinstance(rank, int) or not isinstance(rope, int) or not attention.latents or attention.indexed:
        return None
    quantised = structure.quantisation is not None
    agreed = all(_is_as_wide(tensors, rank + rope, quantised) for tensors in attention.latents)
    return len(attention.latents) * (rank + rope) if agreed else None


def _is_as_wide(tensors: Mapping[str, TensorType], width: int, quantised: bool) -> bool:
    """Whether a projection has that many outputs; of a packed one, weight or scales show it in some dimension."""
    weight = tensors.get("weight")
    if weight is not None and len(weight.shape) == 2 and weight.shape[0] == width:
        return True
    return quantised and any(width in one.shape for one in tensors.values())


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
    if structure.quantisation is not None:
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
    if structure.quantisation is not None:
        return None
    return _DTYPE_BYTES.get(next(iter(dtypes))) if len(dtypes) == 1 else None


def _window(structure: Structure, config: Mapping[str, Any], kind: str | None) -> int | None:
    keys = _WINDOWS.get(kind or "", ())
    if kind is None and structure.model_type in _WINDOW_EVERYWHERE and config.get("use_sliding_window") is not False:
        keys = ("sliding_window",)
    window = next((config[key] for key in keys if key in config), None)
    return window if isinstance(window, int) else None
