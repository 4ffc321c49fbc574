"""Proves an exported adapter: plain PEFT must load it, and it must do what the live gated model does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors.torch import load_file

from surgeon.backend.model.adapters import attached, without_deprecations
from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.backend.model.loading import load_model
from surgeon.backend.verification.check_helpers import (
    Check,
    compare,
    model_logits,
    random_tokens,
    reallocate_parameters,
    token_rows,
    working_tokenizer,
)
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import is_learned
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import unfrozen

if TYPE_CHECKING:
    import torch


def check_adapter(
    model: torch.nn.Module, directory: Path, base: torch.nn.Module | None = None, draft: Draft | None = None,
    tokenizer: Any = None,
) -> Check:  # fmt: skip
    """Load an adapter with plain PEFT: every key must fit, and it must do what the live gated model does.

    `base` is edited and adapted as `draft` says to compare with, where both are at hand; it may be the model itself.
    Compared are random tokens and, where there is a tokenizer, texts.
    """
    fits, count, zero = _keys_of_adapter(model, directory)
    fit = f"{count} LoRA matrices {'fit' if fits else 'do not fit'}"
    if not fits:
        return Check("adapter", False, fit)
    device = next(model.parameters()).device
    rows = [random_tokens(model, device, 1, 16), *(token_rows(tokenizer, model, device) if tokenizer else ())]
    if zero:
        before, found = model_logits(model, rows[0]), _adapted_logits(model, directory, rows[0])
        at_zero = compare("adapter", f"{fit}; logits with B at zero", before, found)
        if not at_zero.passed:
            return at_zero
        fit = at_zero.detail
    if base is None or draft is None or not _adapters_known(draft):
        what = "not compared with the live model: what was learned is not at hand"
        return Check("adapter", None, f"{fit}; {what}")
    for tokens_BT in rows:
        expected, found = _gated_logits(base, draft, tokens_BT), _adapted_logits(model, directory, tokens_BT)
        if not torch.equal(expected, found):
            reallocate_parameters(base, model)
            expected, found = _gated_logits(base, draft, tokens_BT), _adapted_logits(model, directory, tokens_BT)
        if not torch.equal(expected, found):
            break
    on = "" if len(rows) > 1 else " on random tokens"
    return compare("adapter", f"{fit}; logits of plain PEFT and of the live gated model{on}", expected, found)


@contextmanager
def _plain_peft(model: torch.nn.Module, directory: Path) -> Iterator[Any]:
    with without_deprecations():
        adapted: Any = PeftModel.from_pretrained(model, str(directory))
    try:
        yield adapted
    finally:
        adapted.unload()


def _keys_of_adapter(model: torch.nn.Module, directory: Path) -> tuple[bool, int, bool]:
    """Return whether every key of an adapter fits, how many matrices it has, and whether all B are zero."""
    stored = load_file(directory / "adapter_model.safetensors")
    with _plain_peft(model, directory) as adapted:
        live = {name.replace(".default", ""): one for name, one in adapted.state_dict().items() if "lora_" in name}
        fits = stored.keys() == live.keys() and all(
            torch.equal(stored[name].to(live[name].dtype), live[name].cpu()) for name in stored
        )
    zero = all(not value.any() for name, value in stored.items() if "lora_B" in name)
    return fits, len(stored) // 2, zero


@torch.inference_mode()
def _adapted_logits(model: torch.nn.Module, directory: Path, tokens_BT: torch.Tensor) -> torch.Tensor:
    with _plain_peft(model, directory) as adapted:
        return model_logits(adapted.get_base_model(), tokens_BT)


@torch.inference_mode()
def _gated_logits(base: torch.nn.Module, draft: Draft, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits of the base, edited and adapted as the draft says, its gates not folded."""
    # Any seed will do: where A was not trained, B is zero.
    with apply_draft(base, unfrozen(draft)) as live, attached(live, compile_plan(draft), seed=0) as (adapted, _):
        return model_logits(adapted.get_base_model(), tokens_BT)


def _adapters_known(draft: Draft) -> bool:
    """Whether the results that hold the adapters' values lie in the cache."""
    return all(
        lora.address is None or is_learned(lora.address)
        for layers in draft.stacks.values()
        for layer in layers
        for lora in layer.lora.values()
    )


def prove_adapter(draft: Draft, directory: Path, device: torch.device) -> dict[str, Any]:
    """Check an adapter that was written for a draft on its base; the proof has the one check.

    Raises:
        CheckpointError, ArchitectureError: the base does not fit its class, or cannot be loaded.
        VerifyError: it does not do what the live model does.
    """
    base = load_model(draft.structure.checkpoint, None, device).model
    check = check_adapter(base, directory, base, draft, working_tokenizer(draft.structure.checkpoint))
    check.require(directory)
    return {check.name: check.plain()}
