"""The semantic basis of labels and the deviation from it, which two scores are made of. Torch is loaded only in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.score import Average, Finished, Setting, average

if TYPE_CHECKING:
    from torch import Tensor


class DeviationCollector:
    """Keeps for every labelled token how far each latent space h_0 … h_L (before the final norm) is from its label.

    The deviation is 1 - cos(h, s_y) with the semantic basis s_y = w_y W+ of the label y: a row of the output
    embedding W times its pseudo-inverse, found from one width x width solve in float64. The formulas of the
    layer-freezing paper are not public; this is our reading of it.
    """

    def __init__(self, setting: Setting, *, normed: bool) -> None:
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

    def finish(self) -> Finished:
        """Return the whole curve, L + 1 values."""
        return Finished(details={"curve": [self.deviation(space).value for space in range(self.layers + 1)]})
