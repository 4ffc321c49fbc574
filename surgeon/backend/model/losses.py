"""Losses of token sequences, from logits and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

IGNORED = -1
"""The label of a position that does not count."""


def losses_of(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return each sequence's mean negative log-likelihood in nats per token, shape (batch,).

    The prediction made at position 0, which has no context, is left out.
    """
    return token_losses(logits_BTV, next_token_labels(tokens_BT)).sum(dim=1) / (tokens_BT.shape[1] - 2)


def next_token_labels(tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the label of each position: the token that follows it, or IGNORED for the first and last position."""
    # Every position, most of them wanted: cutting the first and last off would copy all logits.
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    targets_BT[:, 1:-1] = tokens_BT[:, 2:]
    return targets_BT


def token_losses(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each label in nats, float32, (batch, tokens); 0 where none counts."""
    losses_N = nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses_N.view_as(targets_BT)


def batches_of(tokens_BT: torch.Tensor, batch_tokens: int) -> Sequence[torch.Tensor]:
    """Split sequences into batches of about that many tokens."""
    return torch.split(tokens_BT, max(1, batch_tokens // tokens_BT.shape[1]))


def label_log_probs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each label, float32; 0 where none counts."""
    return -token_losses(logits_BTV, labels_BT)
