"""Negative preference optimisation: forgetting wrong answers, or those tokens of them that are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from surgeon.core.recipe.objective import Objective, ObjectiveInputs

if TYPE_CHECKING:
    from torch import Tensor


class NegativePreference(Objective, frozen=True, kw_only=True):
    """`sum_t l_t / #{t: r_t != 0}` with `l_t = -r_t * log sigmoid(-beta * (log pi_t - log pi_ref_t))`, r_t a weight.

    Where the data or a rewriter give each token's probability of being kept, r_t is 1 below `threshold`, else 0: what a
    rewriter would not keep is forgotten. Without them every r_t is 1. Source: ALLO, arXiv:2406.12606, forgetting stage;
    NPO, arXiv:2404.05868, per token.
    """

    name = "npo"
    summary = "forget wrong answers, or the tokens of them that token rewards call wrong"
    paper = "ALLO, arXiv:2406.12606; NPO, arXiv:2404.05868"
    rows = "rejected"
    reference = True

    beta: Annotated[float, msgspec.Meta(gt=0, description="how soon a token counts as forgotten")] = 0.1
    threshold: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=1)] | None,
        msgspec.Meta(description="tokens with a smaller reward are forgotten; null: rewards weigh tokens as they are"),
    ] = 0.5
    rewriter: Annotated[
        str | None, msgspec.Meta(description="a model that mends answers: rewards are its probabilities of the tokens")
    ] = None

    @property
    def token_rewards(self) -> str | None:
        """Return the model that rewards tokens, if one is named."""
        return self.rewriter

    def loss(self, seen: ObjectiveInputs) -> Tensor:
        """Return the mean over the tokens that weigh something; 0 where none does."""
        from torch.nn.functional import logsigmoid

        weights_BT = self.weights(seen)
        losses_BT = -weights_BT * logsigmoid(-self.beta * (seen.log_probs_BT - seen.reference_BT))
        return losses_BT.sum() / (weights_BT != 0).sum().clamp(min=1)

    def weights(self, seen: ObjectiveInputs) -> Tensor:
        """Return r, (B, T), 0 where no label counts."""
        labelled_BT = seen.labels_BT >= 0
        if seen.weights_BT is None:
            return labelled_BT.float()
        if self.threshold is None:
            return seen.weights_BT * labelled_BT
        return ((seen.weights_BT < self.threshold) & labelled_BT).float()

    def weight(self, seen: ObjectiveInputs) -> float:
        """Return the number of tokens to forget."""
        return float((self.weights(seen) != 0).sum())

    def figures(self, seen: ObjectiveInputs) -> dict[str, float]:
        """Return the mean log-ratio to the reference of the tokens to forget: it falls."""
        targets_BT = self.weights(seen) != 0
        ratios_BT = (seen.log_probs_BT - seen.reference_BT).detach() * targets_BT
        return {"log_ratio": float(ratios_BT.sum() / targets_BT.sum().clamp(min=1))}

    def remark(self, *, weighted: bool) -> str:
        """Say so where nothing tells wrong tokens from right ones."""
        if weighted:
            return ""
        return "npo: no token rewards, so every token of a wrong answer is forgotten alike: untargeted NPO"
