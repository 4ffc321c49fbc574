"""Blockwise healing: every changed layer learns the hidden states of the base, one layer at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.recipe.objective import Objective, ObjectiveInputs

if TYPE_CHECKING:
    from torch import Tensor


class Blockwise(Objective, frozen=True, kw_only=True):
    """The squared distance of a layer's output from the base's, over the base's squared length; mean over tokens.

    Each changed layer is trained alone, the first one first, on what the healed layers before it put out; a layer in
    front of removed ones learns what the last of those put out. `steps` are for each layer. One layer of the model and
    one of the base are in memory, and no logits are computed.
    """

    name = "blockwise"
    summary = "match the base model's hidden states, one changed layer after the other"
    paper = "blockwise local distillation: Puzzle, arXiv:2411.19146, section 3"
    rows = "text"
    blockwise = True

    def loss(self, seen: ObjectiveInputs) -> Tensor:
        """Raise: it looks at no logits.

        Raises:
            NotImplementedError: always; `distance` is what each layer minimises.
        """
        raise NotImplementedError

    def distance(self, hidden_BTD: Tensor, base_BTD: Tensor) -> Tensor:
        """Return the mean over tokens. Relative, so that the few tokens of huge norm are not all that counts."""
        difference_BT = (hidden_BTD.float() - base_BTD.float()).square().sum(dim=-1)
        length_BT = base_BTD.float().square().sum(dim=-1)
        return (difference_BT / length_BT.clamp(min=1e-12)).mean()
