"""How far the residual stream still is from what the model will say, and where it turns towards it.

Two scores of one measurement: the deviation of every latent space from the label's semantic basis, and its differences.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from surgeon.core.scoring.score import END_OF_FREEZING, Average, average
from surgeon.core.scoring.score_kinds import ActivationsContext, ActivationsScore, Collector, ScoreSummary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_RESAMPLES = 1000
State = Annotated[
    Literal["raw", "normed"], msgspec.Meta(description="hidden state as it is, or through the final norm")
]


class SemanticDeviation(ActivationsScore, frozen=True, kw_only=True):
    """1 minus the cosine of the hidden state entering a layer and the label's semantic basis."""

    name = "semantic_deviation"
    title = "dev"
    asks = "how far from the label is the hidden state that enters the layer"
    cost = "one forward, and one width x width solve"
    paper = "Semantic-based Layer Freezing, arXiv:2406.11753; basis: Vocabulary-Defined Semantics, arXiv:2401.16184"

    state: State = "raw"

    def collector(self, setting: ActivationsContext) -> Collector:
        """Measure the deviation before every layer."""
        return _Deviation(setting, normed=self.state == "normed")


class SemanticGain(ActivationsScore, frozen=True, kw_only=True):
    """How much a layer brings the hidden state nearer to the label: deviation before minus deviation after.

    The paper freezes everything up to the layer of the largest gain. The last layers are left out of that choice: their
    gain is the largest of all in small models, and freezing up to them would freeze everything. `end_of_freezing` in
    the details is the choice, with a bootstrap interval over sequences and the histogram of per-token choices.
    """

    name = "semantic_gain"
    title = "gain"
    asks = "how much nearer to the label does the layer bring the hidden state"
    cost = "one forward, and one width x width solve"
    paper = "Semantic-based Layer Freezing, arXiv:2406.11753; the formula is our reading of it"

    state: State = "raw"
    gain: Annotated[
        Literal["difference", "log"], msgspec.Meta(description="difference of deviations, or of logarithms")
    ] = "difference"
    leave_out: Annotated[int, msgspec.Meta(ge=0, description="last layers that freezing may not end at")] = 1
    train_at_most: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="budget: layers that may be trained")
    ] = None

    def collector(self, setting: ActivationsContext) -> Collector:
        """Measure the deviation in every latent space."""
        return _Gain(setting, self)


class _Latents:
    """Keeps for every labelled token how far each latent space h_0 … h_L (before the final norm) is from its label.

    The deviation is 1 - cos(h, s_y) with the semantic basis s_y = w_y W+ of the label y: a row of the output
    embedding W times its pseudo-inverse, found from one width x width solve in float64. The formulas of the
    layer-freezing paper are not public; this is our reading of it.
    """

    def __init__(self, setting: ActivationsContext, *, normed: bool) -> None:
        """Solve for the bases of the labels that occur."""
        import torch

        self.layers = setting.layers
        self._normed = setting.final_norm if normed else None
        self._seen: dict[int, list[list[float]]] = {}
        self._targets_BT = setting.targets_BT
        head_VD = setting.head().detach().double()
        labels = torch.unique(torch.cat([targets_BT[targets_BT >= 0] for targets_BT in setting.targets_BT]))
        basis_ND = torch.linalg.solve(head_VD.T @ head_VD, head_VD[labels].T).T
        self._basis_ND = torch.nn.functional.normalize(basis_ND, dim=-1).float()
        self._rows = {int(label): row for row, label in enumerate(labels.tolist())}

    def see(self, layer: int, batch: int, hidden_in_BTD: Tensor, hidden_out_BTD: Tensor) -> None:
        """Take in the latent spaces on both sides of a layer."""
        if layer == 0:
            self._take(0, batch, hidden_in_BTD)
        self._take(layer + 1, batch, hidden_out_BTD)

    def _take(self, space: int, batch: int, hidden_BTD: Tensor) -> None:
        import torch

        targets_BT = self._targets_BT[batch]
        hidden_BTD = hidden_BTD if self._normed is None else self._normed(batch, hidden_BTD)
        for hidden_TD, targets_T in zip(hidden_BTD, targets_BT, strict=True):
            wanted = targets_T >= 0
            if not wanted.any():
                continue
            rows = torch.tensor([self._rows[label] for label in targets_T[wanted].tolist()])
            basis_ND = self._basis_ND[rows.to(self._basis_ND.device)]
            cosine_N = torch.nn.functional.cosine_similarity(hidden_TD[wanted].float(), basis_ND, dim=-1)
            self._seen.setdefault(space, []).append((1 - cosine_N).tolist())

    def deviation(self, space: int) -> Average:
        """Return the mean deviation of latent space h_space, over tokens of a sequence and then over sequences."""
        return average([sum(tokens) / len(tokens) for tokens in self._seen[space]])

    def by_token(self, space: int) -> list[list[float]]:
        """Return the deviations of every labelled token, sequence by sequence."""
        return self._seen[space]

    def finish(self) -> ScoreSummary:
        """Return the whole curve, L + 1 values."""
        return ScoreSummary(details={"curve": [self.deviation(space).value for space in range(self.layers + 1)]})


class _Deviation(_Latents):
    def value(self, layer: int) -> Average:
        return self.deviation(layer)


class _Gain(_Latents):
    def __init__(self, setting: ActivationsContext, kind: SemanticGain) -> None:
        super().__init__(setting, normed=kind.state == "normed")
        self._kind = kind

    def value(self, layer: int) -> Average:
        return average([sum(tokens) / len(tokens) for tokens in self._gains(layer)])

    def _gains(self, layer: int) -> list[list[float]]:
        scale = math.log if self._kind.gain == "log" else float
        before, after = self.by_token(layer), self.by_token(layer + 1)
        return [[scale(b) - scale(a) for b, a in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]

    def finish(self) -> ScoreSummary:
        lowest = max(0, self.layers - 1 - self._kind.train_at_most) if self._kind.train_at_most else 0
        allowed = range(lowest, max(self.layers - self._kind.leave_out, lowest + 1))
        gains = {layer: self._gains(layer) for layer in allowed}
        means = {layer: [sum(tokens) / len(tokens) for tokens in gains[layer]] for layer in allowed}
        chosen = max(allowed, key=lambda layer: sum(means[layer]))
        low, high = _bootstrap(means)
        tokens = {layer: [gain for sequence in gains[layer] for gain in sequence] for layer in allowed}
        votes = Counter(max(allowed, key=lambda layer: tokens[layer][token]) for token in range(len(tokens[chosen])))
        details = {
            **super().finish().details,
            END_OF_FREEZING: chosen,
            "interval": [low, high],
            "votes": {str(layer): votes[layer] for layer in allowed},
        }
        return ScoreSummary(details=details)


def _bootstrap(means: dict[int, list[float]]) -> tuple[int, int]:
    """Return the central 95 % of the chosen layer when sequences are drawn again with replacement."""
    generator = random.Random(0)
    count = len(next(iter(means.values())))
    draws: list[Sequence[int]] = [generator.choices(range(count), k=count) for _ in range(_RESAMPLES)]
    chosen = sorted(max(means, key=lambda layer: sum(means[layer][at] for at in draw)) for draw in draws)
    return chosen[int(0.025 * _RESAMPLES)], chosen[int(0.975 * _RESAMPLES) - 1]
