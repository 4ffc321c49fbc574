"""Proves an export: reloads it with plain transformers and compares it with the live edited base.

An in-memory check alone proves nothing: the known failures of depth surgery appear only after reload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.backend.model.loading import Loaded, load_model, load_tokenizer
from surgeon.backend.model.quantised_models import unread_quantisation
from surgeon.backend.verification.check_helpers import (
    LENGTH,
    TEXTS,
    Check,
    Proof,
    compare,
    model_logits,
    random_tokens,
    reallocate_parameters,
    token_rows,
    working_tokenizer,
)
from surgeon.backend.verification.files_verification import file_checks, unloaded_checks, untried_inputs
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.fit import Fit
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft, Identity, Layer
from surgeon.core.recipe.apply_steps import unfrozen
from surgeon.core.structure.companions import plain_name
from surgeon.export.checkpoint_writer import ADAPTER, TRAINABLE

_NEW_TOKENS = 12
_PROMPTS = 3


@torch.inference_mode()
def verify(written: Checkpoint, draft: Draft | None, device: torch.device, job: JobContext) -> Proof:
    """Run every check on a written checkpoint; `draft` is what it should be, None where the base is not at hand.

    Everything is computed in the checkpoint's own dtype, but for the comparison of generation with and without a
    cache, which is made in float32: their sums are ordered differently.

    Raises:
        CheckpointError, ArchitectureError: the base does not fit its class, or cannot be loaded; without a base, the
            checkpoint itself. VerifyError: any check failed; the message names the first.
    """
    structure = read_structure(written)
    quantisation = unread_quantisation(written)
    texts = _Texts(draft.structure.checkpoint, written) if draft is not None else None
    proof = _proved(file_checks(structure, draft), draft, written.path, job)
    if quantisation is not None:
        tokenizer = [texts.check_tokenizer] if texts is not None else []
        unloaded = unloaded_checks(quantisation, structure, draft, ("keys", "logits", "text", "generation"))
        return {**_proved([*unloaded, *tokenizer], draft, written.path, job), **proof}
    proof = {**_proved(_live_checks(written, draft, texts, device), draft, written.path, job), **proof}
    untried = untried_inputs(written.config)
    return proof if untried is None else {**proof, untried.name: untried.plain()}


def _proved(steps: Sequence[Callable[[], Check]], draft: Draft | None, directory: Path, job: JobContext) -> Proof:
    proof: Proof = {}
    for number, step in enumerate(steps):
        job.stop_if_cancelled()
        job.progress(number, len(steps), "checks", "verifying")
        check = step()
        if draft is None and check.hint == Check.hint:
            check = replace(check, hint="fetch the model again, or make it again from its base")
        check.require(directory)
        proof[check.name] = check.plain()
    return proof


def _live_checks(
    written: Checkpoint, draft: Draft | None, texts: _Texts | None, device: torch.device
) -> list[Callable[[], Check]]:
    """Return the checks of the reloaded model."""
    base = load_model(draft.structure.checkpoint, None, device) if draft is not None else None
    # The base is in order, so what is wrong with the export is the export's.
    reloaded = load_model(written, None, device, whole=base is None)
    steps: list[Callable[[], Check]] = [lambda: _keys(reloaded, base)]
    if base is not None and draft is not None and texts is not None:
        steps += [lambda: _logits(reloaded, base, draft), lambda: _identities(base, draft)]
        steps += [texts.check_tokenizer, lambda: texts.check_logits(reloaded, base, draft)]
    unloaded = _unloaded(reloaded.fit)
    return [
        *steps,
        lambda: _trainable(reloaded, written.path),
        lambda: _adapter(reloaded, written.path, base, draft, texts.before if texts else None),
        lambda: _generation(reloaded, base),
        *([lambda: unloaded] if unloaded is not None else []),
    ]


def _keys(reloaded: Loaded, base: Loaded | None) -> Check:
    fit, known = reloaded.fit, {_numberless(key) for key in base.fit.unexpected} if base else set()
    wrong = [f"missing {key}" for key in fit.missing]
    wrong += [f"mismatched {one.name}: {list(one.stored)}, not {list(one.expected)}" for one in fit.mismatched]
    # Without a base, what the class does not load is told as what was not proved.
    wrong += [f"unexpected {key}" for key in fit.unexpected if base is not None and _numberless(key) not in known]
    return Check("keys", not wrong, "; ".join(wrong[:5]) or "none missing, unexpected or mismatched")


def _numberless(key: str) -> str:
    return re.sub(r"\d+", "N", key)


def _unloaded(fit: Fit) -> Check | None:
    """Say which tensors none of the checks has looked at; None if there are none."""
    if not fit.unexpected:
        return None
    seen = f"{fit.class_name} does not load {len(fit.unexpected)} tensors, such as {fit.unexpected[0]}"
    return Check("other tensors", None, f"nothing was computed with them: {seen}")


def _logits(reloaded: Loaded, base: Loaded, draft: Draft) -> Check:
    tokens_BT = random_tokens(base.model, next(base.model.parameters()).device, 2, LENGTH)
    return _compared(reloaded, base, draft, tokens_BT)


def _compared(reloaded: Loaded, base: Loaded, draft: Draft, tokens_BT: torch.Tensor) -> Check:
    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with apply_draft(base.model, unfrozen(draft)) as live:
            expected = model_logits(live, tokens_BT)
        return expected, model_logits(reloaded.model, tokens_BT)

    expected, found = both()
    if not torch.equal(expected, found):
        reallocate_parameters(base.model, reloaded.model)
        expected, found = both()
    return compare("logits", "reloaded and live edited model", expected, found)


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
    return compare("identities", f"with and without {count} inserted layers", expected, found)


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


class _Texts:
    """Base and export on text: each with its own tokenizer."""

    def __init__(self, base: Checkpoint, written: Checkpoint) -> None:
        self.before, self._written = working_tokenizer(base), written

    @cached_property
    def _after(self) -> Any:
        return load_tokenizer(self._written)

    def check_tokenizer(self) -> Check:
        """Compare token ids, the text that they give back, and the chat template."""
        if self.before is None:
            return Check("tokenizer", None, "not compared: the base has none that works")
        same, count = True, 0
        for text in TEXTS:
            expected, ids = self.before(text)["input_ids"], self._after(text)["input_ids"]
            count += len(ids)
            back = (one.decode(ids, skip_special_tokens=True) for one in (self.before, self._after))
            same = same and ids == expected and len(set(back)) == 1
        template = getattr(self.before, "chat_template", None) == getattr(self._after, "chat_template", None)
        passed = same and template
        seen = f"{count} token ids, their text and the chat template {'equal' if passed else 'differ from'} the base's"
        return Check("tokenizer", passed, seen)

    def check_logits(self, reloaded: Loaded, base: Loaded, draft: Draft) -> Check:
        """Compare what the live edited base and the export make of the same texts, each through its tokenizer."""
        if self.before is None:
            return Check("text", None, "not compared: the base has no tokenizer that works")
        device = next(base.model.parameters()).device
        expected = token_rows(self.before, base.model, device)
        found = token_rows(self._after, reloaded.model, device)
        if not expected:
            return Check("text", None, "not compared: the base's tokenizer has ids beyond its embedding")
        if [row.tolist() for row in expected] != [row.tolist() for row in found]:
            return Check("text", False, "the tokenizers cut it into other tokens")
        checks = [_compared(reloaded, base, draft, row) for row in expected]
        worst = next((check for check in checks if not check.passed), checks[0])
        return replace(worst, name="text", detail=f"{len(checks)} texts, {worst.detail}")


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
        if _numberless(name) not in map(_numberless, reloaded.fit.unexpected) and name not in tied
    )
    return Check(
        "trainable",
        not wrong,
        f"no parameter is called {wrong[0]}"
        if wrong
        else f"{len(record['trainable'])} trainable and {len(record['frozen'])} frozen names exist",
    )


def _adapter(reloaded: Loaded, directory: Path, base: Loaded | None, draft: Draft | None, tokenizer: Any) -> Check:
    if not (directory / ADAPTER).is_dir():
        return Check("adapter", True, "none")
    from surgeon.backend.verification.adapter_verification import check_adapter

    return check_adapter(reloaded.model, directory / ADAPTER, base.model if base else None, draft, tokenizer)
