"""Continued pre-training: the next token of running text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.recipe.objective import Objective, ObjectiveInputs, mean_nll

if TYPE_CHECKING:
    from torch import Tensor


class LanguageModelling(Objective, frozen=True, kw_only=True):
    """Mean negative log-likelihood of every token of packed text, in nats."""

    name = "lm"
    summary = "next-token prediction on running text (continued pre-training)"
    rows = "text"

    def loss(self, seen: ObjectiveInputs) -> Tensor:
        """Return the mean over all labels."""
        return mean_nll(seen)
