"""How far an edited model's next-token distribution is from the base's; both are arrangements of the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from surgeon.backend.data.examples import Batch, collate
from surgeon.backend.data.tokens import Tokens
from surgeon.backend.evaluation.model_outputs import MOST_LOGITS, Tell, batches_by_length
from surgeon.backend.model.losses import IGNORED

AsBase = Callable[[], AbstractContextManager[nn.Module]]
"""Gives the base while it is entered."""


@torch.inference_mode()
def divergences(
    edited: nn.Module, as_base: AsBase, sequences: Sequence[Tokens], words: int, tell: Tell
) -> list[list[float]]:
    """Return for each sequence the sum of KL(base ‖ edited) in nats, and how often both rate the same token highest.

    Both are over the positions that have a label; softmax in float32, sums in float64. `words` is the size of the
    vocabulary. For a batch the base runs first, and only its log-probabilities are kept.
    """
    device = next(edited.parameters()).device
    found = [[0.0, 0.0] for _ in sequences]
    done = 0
    for numbers in batches_by_length([len(one.tokens) for one in sequences], max(1, MOST_LOGITS // words // 2)):
        batch = collate([(sequences[number],) for number in numbers], numbers, device)
        counted_BT = batch.labels_BT != IGNORED
        with as_base() as base:
            expected_NV = _log_probs(base, batch)
        got_NV = _log_probs(edited, batch)
        # KL is not negative; rounding of the sum may make it so where the two are all but equal.
        kl_N = (expected_NV.exp() * (expected_NV - got_NV)).double().sum(dim=-1).clamp(min=0.0)
        same_N = (expected_NV.argmax(dim=-1) == got_NV.argmax(dim=-1)).double()
        by_row = counted_BT.sum(dim=1).tolist()
        for number, kl, same in zip(numbers, torch.split(kl_N, by_row), torch.split(same_N, by_row), strict=True):
            found[number] = [kl.sum().item(), same.sum().item()]
        done += len(numbers)
        tell(done)
    return found


def _log_probs(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the log-probabilities of the vocabulary at the positions that have a label, float32, (N, V)."""
    logits_BTV = model(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT, use_cache=False).logits
    # Not log_softmax: over a large vocabulary logsumexp adds up with less error, see `likelihoods`.
    logits_NV: torch.Tensor = logits_BTV[batch.labels_BT != IGNORED].float()
    return logits_NV - logits_NV.logsumexp(dim=-1, keepdim=True)
