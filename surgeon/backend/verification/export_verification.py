"""Proves an export: reloads it with plain transformers and compares it with the live edited base.

An in-memory check alone proves nothing: the known failures of depth surgery appear only after reload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.backend.model.loading import Loaded, load_model, load_tokenizer
from surgeon.backend.model.quantised_models import unread_quantisation
from surgeon.backend.verification.check_helpers import (
    Check,
    Proof,
    difference,
    model_logits,
    random_tokens,
    reallocate_parameters,
)
from surgeon.backend.verification.files_verification import file_checks, unloaded_checks, untried_inputs
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, Identity, Layer
from surgeon.core.recipe.apply_steps import unfrozen
from surgeon.core.structure.companions import plain_name
from surgeon.export.checkpoint_writer import ADAPTER, TRAINABLE

_TEXT = 'The surgeon opened the checkpoint, counted 30 layers, and said: "def f(x): return x + 1" is not prose.\n'
_NEW_TOKENS = 12
_PROMPTS = 3


@torch.inference_mode()
def verify(directory: Path, draft: Draft | None, device: torch.device, job: JobContext) -> Proof:
    """Run every check on a written checkpoint; `draft` is what it should be, None where the base is not at hand.

    Everything is computed in the checkpoint's own dtype, but for the comparison of generation with and without a
    cache, which is made in float32: their sums are ordered differently.

    Raises:
        VerifyError: any check failed; the message names the first.
    """
    structure = read_structure(open_checkpoint(directory))
    quantisation = unread_quantisation(structure.checkpoint)
    proof = _proved(file_checks(structure, draft), directory, job)
    if quantisation is not None:
        tokenizer = [lambda: _tokenizer(directory, draft.structure.checkpoint.path)] if draft is not None else []
        unloaded = unloaded_checks(quantisation, structure, draft, ("keys", "logits", "generation"))
        return {**_proved([*unloaded, *tokenizer], directory, job), **proof}
    proof = {**_proved(_live_checks(directory, draft, device), directory, job), **proof}
    untried = untried_inputs(structure.checkpoint.config)
    return proof if untried is None else {**proof, untried.name: untried.plain()}


def _proved(steps: Sequence[Callable[[], Check]], directory: Path, job: JobContext) -> Proof:
    proof: Proof = {}
    for number, step in enumerate(steps):
        job.stop_if_cancelled()
        job.progress(number, len(steps), "checks", "verifying")
        check = step()
        check.require(directory)
        proof[check.name] = check.plain()
    return proof


def _live_checks(directory: Path, draft: Draft | None, device: torch.device) -> list[Callable[[], Check]]:
    """Return the checks of the reloaded model."""
    reloaded = load_model(directory, None, device)
    base = load_model(draft.structure.checkpoint.path, None, device) if draft is not None else None
    steps: list[Callable[[], Check]] = [lambda: _keys(reloaded, base)]
    if base is not None and draft is not None:
        steps += [lambda: _logits(reloaded, base, draft), lambda: _identities(base, draft)]
        steps += [lambda: _tokenizer(directory, draft.structure.checkpoint.path)]
    return [
        *steps,
        lambda: _trainable(reloaded, directory),
        lambda: _adapter(reloaded, directory, base, draft),
        lambda: _generation(reloaded, base),
    ]


def _keys(reloaded: Loaded, base: Loaded | None) -> Check:
    known = {_numberless(key) for key in base.report.get("unexpected_keys", [])} if base else set()
    wrong = [f"{kind.removesuffix('_keys')} {key}" for kind, keys in reloaded.report.items() for key in keys
             if not (kind == "unexpected_keys" and _numberless(key) in known)]  # fmt: skip
    return Check("keys", not wrong, "; ".join(wrong[:5]) or "none missing, unexpected or mismatched")


def _numberless(key: str) -> str:
    return re.sub(r"\d+", "N", key)


def _logits(reloaded: Loaded, base: Loaded, draft: Draft) -> Check:
    tokens_BT = random_tokens(base.model, next(base.model.parameters()).device, 2, 32)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with apply_draft(base.model, unfrozen(draft)) as live:
            expected = model_logits(live, tokens_BT)
        return expected, model_logits(reloaded.model, tokens_BT)

    expected, found = both()
    if not torch.equal(expected, found):
        reallocate_parameters(base.model, reloaded.model)
        expected, found = both()
    return Check(
        "logits", torch.equal(expected, found), f"reloaded and live edited model: {difference(expected, found)}"
    )


def _identities(base: Loaded, draft: Draft) -> Check:
    """Inserted identities must not change a bit: compare with the same model without them."""
    without = replace(
        unfrozen(draft), stacks={name: tuple(filter(_acts, layers)) for name, layers in draft.stacks.items()}
    )
    count = sum(map(len, draft.stacks.values())) - sum(map(len, without.stacks.values()))
    if not count:
        return Check("identities", True, "none inserted")
    tokens_BT = random_tokens(base.model, next(base.model.parameters()).device, 2, 32)
    with apply_draft(base.model, unfrozen(draft)) as live:
        expected = model_logits(live, tokens_BT)
    with apply_draft(base.model, without) as live:
        found = model_logits(live, tokens_BT)
    return Check(
        "identities",
        torch.equal(expected, found),
        f"with and without {count} inserted layers: {difference(expected, found)}",
    )


def _acts(layer: Layer) -> bool:
    return not isinstance(layer.source, Identity)


def _generation(reloaded: Loaded, base: Loaded | None) -> Check:
    model: Any = reloaded.model
    if not model.can_generate() or model.config.is_encoder_decoder:
        return Check("generation", None, "not compared: it does not continue its input")
    same = _cache_agrees(model)
    seen = f"{_NEW_TOKENS} greedy tokens with and without cache are {'equal' if same else 'different'}"
    if not same and getattr(model, "is_quantized", False):
        return Check("generation", None, f"{seen}, and a quantised model cannot be compared in float32")
    if not same and base is not None and not all(_cache_agrees(base.model, seed) for seed in range(_PROMPTS)):
        return Check("generation", True, f"{seen}, as they are for the base")
    return Check("generation", same, seen)


def _cache_agrees(model: Any, seed: int = 0) -> bool:
    model = model if getattr(model, "is_quantized", False) else model.float()
    tokens_BT = random_tokens(model, next(model.parameters()).device, 1, 8, seed)
    options = {
        "attention_mask": torch.ones_like(tokens_BT),
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": _NEW_TOKENS,
        "min_new_tokens": _NEW_TOKENS,
    }
    try:
        cached = model.generate(tokens_BT, use_cache=True, **options)
        return torch.equal(cached, model.generate(tokens_BT, use_cache=False, **options))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return False  # some models of transformers cannot generate at all; then their base cannot either


def _tokenizer(directory: Path, base: Path) -> Check:
    try:
        before = load_tokenizer(base)
        expected = before(_TEXT)["input_ids"]
    except Exception:  # transformers tells in many ways that files or libraries are missing
        return Check("tokenizer", True, "the base has none that works")
    after = load_tokenizer(directory)
    ids = after(_TEXT)["input_ids"]
    same = ids == expected
    back = after.decode(ids, skip_special_tokens=True) == before.decode(ids, skip_special_tokens=True)
    template = getattr(before, "chat_template", None) == getattr(after, "chat_template", None)
    passed = same and back and template
    seen = f"{len(ids)} token ids, their text and the chat template {'equal' if passed else 'differ from'} the base's"
    return Check("tokenizer", passed, seen)


def _trainable(reloaded: Loaded, directory: Path) -> Check:
    path = directory / TRAINABLE
    if not path.is_file():
        return Check("trainable", True, "nothing frozen")
    record = msgspec.json.decode(path.read_bytes())
    model = reloaded.model
    stored = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    names = stored | set(map(plain_name, stored))  # a quantised weight goes by the name that it has without
    listed = {*record["trainable"], *record["frozen"]}
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    wrong = sorted(
        name
        for name in listed - names
        if _numberless(name) not in map(_numberless, reloaded.report.get("unexpected_keys", [])) and name not in tied
    )
    return Check(
        "trainable",
        not wrong,
        f"no parameter is called {wrong[0]}"
        if wrong
        else f"{len(record['trainable'])} trainable and {len(record['frozen'])} frozen names exist",
    )


def _adapter(reloaded: Loaded, directory: Path, base: Loaded | None, draft: Draft | None) -> Check:
    if not (directory / ADAPTER).is_dir():
        return Check("adapter", True, "none")
    from surgeon.backend.verification.adapter_verification import check_adapter

    return check_adapter(reloaded.model, directory / ADAPTER, base.model if base else None, draft)
