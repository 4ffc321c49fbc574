"""Direct preference optimisation, and ALLO's learning stage: with the worst tokens of the rejected answer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from surgeon.core.recipe.objective import Objective, ObjectiveInputs

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-9
"""What binary fractions put on top of a whole number: 0.1 * 30 is a little more than 3."""


class DirectPreference(Objective, frozen=True, kw_only=True):
    """`-log sigmoid(beta * (d_chosen - d_rejected))`, where d sums the log-ratio to the reference over an answer.

    Source: DPO, arXiv:2305.18290, equation 7. With `keep_rejected`, ALLO, arXiv:2406.12606, learning stage: of a
    rejected answer of T tokens count the `max(1, ceil(keep_rejected * T))` with the lowest log-ratio.
    """

    name = "dpo"
    summary = "prefer chosen to rejected answers (direct preference optimisation)"
    paper = "DPO, arXiv:2305.18290; token selection: ALLO, arXiv:2406.12606"
    rows = "pairs"
    reference = True

    beta: Annotated[float, msgspec.Meta(gt=0, description="how strongly the reference holds the model back")] = 0.1
    keep_rejected: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=1)] | None,
        msgspec.Meta(description="share of a rejected answer's tokens that count: the lowest log-ratios; null: all"),
    ] = None

    def loss(self, seen: ObjectiveInputs) -> Tensor:
        """Return the mean over pairs."""
        from torch.nn.functional import logsigmoid

        ratios_BT, labelled_BT = _log_ratios(seen), seen.labels_BT >= 0
        pairs = len(ratios_BT) // 2
        chosen_P = ratios_BT[:pairs].sum(1)
        if self.keep_rejected is None:
            rejected_P = ratios_BT[pairs:].sum(1)
        else:
            rejected_P = sum_of_lowest(ratios_BT[pairs:], labelled_BT[pairs:], self.keep_rejected)
        return -logsigmoid(self.beta * (chosen_P - rejected_P)).mean()

    def weight(self, seen: ObjectiveInputs) -> float:
        """Return the number of pairs."""
        return len(seen.labels_BT) / 2

    def figures(self, seen: ObjectiveInputs) -> dict[str, float]:
        """Return how often the chosen answer gained more than the rejected one, a tie as a half; and by how much.

        Both over all tokens, whatever `keep_rejected` is, so that courses can be compared.
        """
        ratios_B = _log_ratios(seen).detach().sum(1)
        pairs = len(ratios_B) // 2
        margins_P = self.beta * (ratios_B[:pairs] - ratios_B[pairs:])
        right = (margins_P > 0).sum() + 0.5 * (margins_P == 0).sum()
        return {"accuracy": float(right / pairs), "margin": float(margins_P.mean())}


def _log_ratios(seen: ObjectiveInputs) -> Tensor:
    """Return the log-ratio of the model to the reference at every label, (B, T); 0 where none counts."""
    return seen.log_probs_BT - seen.reference_BT


def sum_of_lowest(values_BT: Tensor, counted_BT: Tensor, share: float) -> Tensor:
    """Return, (B,), the sum of the `max(1, ceil(share * T))` lowest of the T values that count in each row."""
    import torch

    wanted_B = torch.ceil(share * counted_BT.sum(1).double() - _ROUNDING).clamp(min=1).long()
    lowest_BK = values_BT.masked_fill(~counted_BT, torch.inf).topk(int(wanted_B.max()), largest=False).values
    kept_BK = torch.arange(lowest_BK.shape[1], device=values_BT.device) < wanted_B[:, None]
    return lowest_BK.where(kept_BK & lowest_BK.isfinite(), 0.0).sum(1)
