"""Which LoRA matrices matter: learned masks on the updates of a short fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from surgeon.core.scoring.gate_ranking import gates_of, rank_values
from surgeon.core.scoring.score import NOT_TRAINED
from surgeon.core.scoring.score_kinds import LearnedValues, LearningScore

Positive = Annotated[int, msgspec.Meta(ge=1)]
Rate = Annotated[float, msgspec.Meta(gt=0)]

_OPEN = 100.0
"""A gate at which float32 has sigmoid(s) = 1: ordinary LoRA."""


class Ila(LearningScore, frozen=True, kw_only=True):
    """The learned gate `s` of each LoRA matrix; a layer's score is the mean over its matrices.

    Stage 1 trains an ordinary LoRA on every linear matrix, until the mean loss of 32 steps differs from that of the 32
    before by less than `epsilon` nats, or for `steps`. Stage 2 freezes weights, A and B, and trains one number for each
    matrix, `y = W x + sigmoid(s) * (alpha / rank) * B A x`, from `init`, with the same loss and no penalty. Only the
    order of the `s` means something: after so short a run all gates are still nearly open.

    A matrix whose B is zero after stage 1 loses nothing when it is masked: it ranks below all others, in an order
    drawn by lot, and is named under `not_trained`. `roles`, joined by +, leaves out all others. Rank, alpha,
    learning rates and epsilon are not told in what could be read of the paper; these are ours.
    """

    name = "ila"
    title = "ILA"
    asks = "how much does fine-tuning need what it learned in the matrix"
    cost = "two short trainings of adapters: steps + mask_steps, each a forward and backward of a batch"
    paper = "Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875"

    rank: Positive = 8
    alpha: Rate = 16.0
    steps: Positive = 256
    mask_steps: Positive = 128
    init: float = 4.0
    learning_rate: Rate = 2e-4
    mask_learning_rate: Rate = 1e-2
    batch_size: Positive = 8
    max_length: Annotated[int, msgspec.Meta(ge=4)] = 512
    epsilon: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    objective: Literal["sft", "lm"] = "sft"
    roles: str = ""
    mixed_precision: Literal["no", "bf16"] | None = None

    def recipe(self, data: str | None) -> Sequence[Mapping[str, Any]]:
        """Return the steps: adapters, stage 1, stage 2."""
        same: dict[str, Any] = {
            "objective": self.objective,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
        }
        same |= {} if data is None else {"data": data}
        same |= {} if self.mixed_precision is None else {"mixed_precision": self.mixed_precision}
        stage_1: dict[str, Any] = {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "scheduler": "constant_with_warmup",
        }
        if self.epsilon:
            stage_1["epsilon"] = self.epsilon
        stage_2 = {"steps": self.mask_steps, "learning_rate": self.mask_learning_rate, "init": self.init}
        lora: dict[str, Any] = {"layers": "all", "rank": self.rank, "alpha": self.alpha, "gate": _OPEN}
        if self.roles:
            lora["roles"] = [role.strip() for role in self.roles.split("+")]
        return (
            {"masked_lora": lora},
            {"train": same | stage_1},
            {"learn_masks": same | stage_2},
        )

    def read(self, reports: Sequence[Mapping[str, Any]], seed: int) -> LearnedValues:
        """Return what the two trainings' reports say of each matrix.

        Raises:
            ScoreError: no matrix was trained.
        """
        trained, masked = reports
        masks: Mapping[str, Mapping[str, Any]] = masked["masks"]
        gates, untrained, notes = gates_of(masks)
        if self.epsilon and not trained["stable"]:
            notes.append(
                f"stage 1 ended after {len(trained['losses'])} steps and was not stable to {self.epsilon} nats"
            )
        details = {"gamma": {name: mask["gamma"] for name, mask in masks.items()}, NOT_TRAINED: untrained}
        losses = {"lora_losses": trained["losses"], "mask_losses": masked["losses"]}
        return LearnedValues(rank_values(gates, seed, self.name), {**details, **losses}, tuple(notes))
