"""Supervised fine-tuning: the answers of dialogues, not their questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.recipe.objective import Objective, ObjectiveInputs, mean_nll

if TYPE_CHECKING:
    from torch import Tensor


class SupervisedFineTuning(Objective, frozen=True, kw_only=True):
    """Mean negative log-likelihood of every token of the answers, in nats; what was asked carries no loss."""

    name = "sft"
    summary = "next-token prediction on answers alone (supervised fine-tuning)"
    rows = "answers"

    def loss(self, seen: ObjectiveInputs) -> Tensor:
        """Return the mean over all labels."""
        return mean_nll(seen)
