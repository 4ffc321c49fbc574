"""The figures of two drafts that the comparison shows side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.kv_cache import kv_cache
from surgeon.core.plan.plan import Plan
from surgeon.core.recipe.command_text import option_text
from surgeon.ui.state.formatting import bytes_text, count_text
from surgeon.ui.state.parameter_counts import adapter_parameters, trainable_parameters


def draft_sizes(draft: Draft, plan: Plan) -> dict[str, str]:
    """Return the sizes of a draft, by name."""
    default = draft.structure.default_stack
    layers = {f"layers {name}".removesuffix(f" {default}"): str(len(layers)) for name, layers in draft.stacks.items()}
    caches = [kv_cache(draft, name).bytes_per_token for name in draft.stacks]
    known = [cache for cache in caches if cache is not None]
    return {
        **layers,
        "parameters": count_text(plan.parameters),
        "bytes": bytes_text(plan.nbytes),
        "KV cache per token": bytes_text(sum(known)) if len(known) == len(caches) else "not known",
        "trainable": count_text(trainable_parameters(draft, plan)),
        "adapter parameters": count_text(adapter_parameters(plan)),
        "tensors": str(len(plan.tensors)),
    }


def flatten_config(config: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Return the fields of a config as text, nested ones by dotted paths."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        flat |= flatten_config(value, name) if isinstance(value, Mapping) else {name: option_text(value)}
    return flat
