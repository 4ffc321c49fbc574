"""Distillation: the next-token distribution of the recipe's base model, on running text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from surgeon.core.recipe.objective import Objective, ObjectiveInputs, mean_nll

if TYPE_CHECKING:
    from torch import Tensor


class Distillation(Objective, frozen=True, kw_only=True):
    """`temperature^2 * KL(teacher || model)`, both softened by the temperature; the mean over all labels, in nats.

    Source: Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2. The teacher is the base model.
    """

    name = "distill"
    summary = "match the base model's next-token distribution on running text"
    paper = "Distilling the Knowledge in a Neural Network, arXiv:1503.02531"
    rows = "text"
    teacher = True

    temperature: Annotated[float, msgspec.Meta(gt=0, description="both distributions are softened by it")] = 1.0

    def loss(self, seen: ObjectiveInputs) -> Tensor:
        """Return the mean over all labels."""
        from torch.nn.functional import kl_div, log_softmax

        labelled_BT = seen.labels_BT >= 0
        # The teacher first: what its pass takes is free again before the model keeps anything for its backward pass.
        teacher_NV = log_softmax(seen.teacher_BTV[labelled_BT].float() / self.temperature, -1)
        model_NV = log_softmax(seen.logits_BTV[labelled_BT].float() / self.temperature, -1)
        return kl_div(model_NV, teacher_NV, reduction="batchmean", log_target=True) * self.temperature**2

    def figures(self, seen: ObjectiveInputs) -> dict[str, float]:
        """Return the mean negative log-likelihood of the text itself, in nats."""
        return {"nll": float(mean_nll(seen).detach())}
