"""Directions that an adapter brings in and that the base did not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from surgeon.core.scoring.score_kinds import AdapterScore

if TYPE_CHECKING:
    from torch import Tensor


class IntruderDimensions(AdapterScore, frozen=True, kw_only=True):
    """How many of the largest left singular vectors of `W + s B A` resemble none of `W`'s.

    Among the `largest` of them those whose cosine to each of W's is below `cosine`. Fully fine-tuned models have
    next to none; models that have them forget more.
    """

    name = "intruder_dimensions"
    title = "intruder"
    asks = "how many new directions among the largest does a trained adapter bring in"
    cost = "minutes: two singular value decompositions of every adapted weight"
    paper = "LoRA vs Full Fine-tuning: An Illusion of Equivalence, arXiv:2410.21228, algorithm 1"

    largest: Annotated[int, msgspec.Meta(ge=1)] = 10
    cosine: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5

    def matrix(self, weight: Tensor, b_OR: Tensor, a_RI: Tensor) -> float:
        """Return their number."""
        import torch

        before = torch.linalg.svd(weight, full_matrices=False).U
        after = torch.linalg.svd(weight + b_OR @ a_RI, full_matrices=False).U[:, : self.largest]
        return float(((before.T @ after).abs().amax(dim=0) < self.cosine).sum())
