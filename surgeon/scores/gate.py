"""Which of a draft's own adapters matter: the gates that `learn_masks` trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.core.scoring.gate_ranking import gates_of, rank_values
from surgeon.core.scoring.score import NOT_TRAINED
from surgeon.core.scoring.score_kinds import LearnedValues, LearningScore
from surgeon.errors import ScoreError


class Gate(LearningScore, frozen=True, kw_only=True):
    """The learned gate `s` of each matrix's own adapter; a layer's score is the mean over its adapters.

    `y = W x + sigmoid(s) * (alpha / rank) * B A x`. For `drop_adapters` after `learn_masks`, stage 3 of the paper:
    `matrices: lowest 25% by gate` takes off what the model needs least of what it learned. `ila` ranks all matrices of
    a model without adapters, by trainings of its own. Only the order of the `s` means something. An adapter that was
    not trained ranks below all others, in an order drawn by lot, and is named under `not_trained`.
    """

    name = "gate"
    title = "gate"
    asks = "how much of what its own adapter learned does the model need"
    cost = "nothing: learn_masks has learned it"
    paper = "Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875, stage 2"
    data = False
    of_adapters = True

    def recipe(self, data: str | None) -> Sequence[Mapping[str, Any]]:
        """Return no steps: what they would learn is there."""
        del data
        return ()

    def read(self, reports: Sequence[Mapping[str, Any]], seed: int) -> LearnedValues:
        """Return what the last trainings of the draft's adapters say of each.

        Raises:
            ScoreError: there are no adapters, their gates were not learned, or they were trained once more since.
        """
        if not reports or any("masks" not in report for report in reports):
            raise ScoreError(
                "gates of trained adapters are not learned" if reports else "there are no trained adapters",
                where=self.name, allowed="after learn_masks", hint="masked_lora, train and learn_masks come before",
            )  # fmt: skip
        masks = {name: mask for report in reports for name, mask in report["masks"].items()}
        gates, untrained, notes = gates_of(masks)
        details = {"gamma": {name: mask["gamma"] for name, mask in masks.items()}, NOT_TRAINED: untrained}
        return LearnedValues(rank_values(gates, seed, self.name), details, tuple(notes))
