"""Made-up batches, as an objective sees them, with gradients to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass
class Batch:
    """What a model made of a batch; see `surgeon.core.recipe.objective.ObjectiveInputs`."""

    labels_BT: torch.Tensor
    logits_BTV: torch.Tensor
    reference_BTV: torch.Tensor
    teacher_BTV: torch.Tensor
    weights_BT: torch.Tensor | None = None

    @cached_property
    def log_probs_BT(self) -> torch.Tensor:
        return log_probs(self.logits_BTV, self.labels_BT)

    @property
    def reference_BT(self) -> torch.Tensor:
        return log_probs(self.reference_BTV, self.labels_BT)

    def rows(self, chosen: Sequence[int]) -> Batch:
        """Return some of its sequences."""
        weights_BT = None if self.weights_BT is None else self.weights_BT[chosen]
        labels_BT, logits_BTV = self.labels_BT[chosen], self.logits_BTV[chosen]
        return Batch(labels_BT, logits_BTV, self.reference_BTV[chosen], self.teacher_BTV[chosen], weights_BT)


def log_probs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of labels by the definition; 0 where none counts."""
    every_BTV = logits_BTV - logits_BTV.exp().sum(-1, keepdim=True).log()
    picked_BT = every_BTV.gather(-1, labels_BT.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels_BT >= 0, picked_BT, torch.zeros(()))


def batch(lengths: Sequence[int], seed: int = 0, words: int = 7, padding: int = 2) -> Batch:
    """Return a random batch whose sequences have so many labels each, behind one token that has none."""
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths) + 1 + padding
    labels_BT = torch.randint(words, (len(lengths), width), generator=draw)
    at_T = torch.arange(width)
    counted_BT = (at_T >= 1) & (at_T <= torch.tensor(lengths)[:, None])
    logits = [torch.randn(len(lengths), width, words, generator=draw) for _ in range(3)]
    return Batch(labels_BT.masked_fill(~counted_BT, -1), logits[0].requires_grad_(), logits[1], logits[2])
