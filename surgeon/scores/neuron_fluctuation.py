"""How much neurons of the MLP fluctuate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.core.scoring.part_scores import PartInputs, PartScore, RoutedTokens

if TYPE_CHECKING:
    from torch import Tensor


class NeuronFluctuation(PartScore, frozen=True, kw_only=True):
    """The variance of what enters the down projection, times the squared norm of the column it is multiplied with.

    A neuron that hardly varies could be replaced by a constant. Values of different layers compare only after they are
    standardised, as the paper does; within a layer, which is how `narrow` chooses, that changes nothing.
    """

    name = "neuron_fluctuation"
    title = "FLAP"
    asks = "how much what a neuron adds to the residual stream varies"
    cost = "one pass"
    paper = "FLAP, arXiv:2312.11983, equation 5"
    part = "neurons"

    def collector(self) -> _Variance:
        """Return what measures one layer."""
        return _Variance()


class _Variance:
    """The sample variance over all tokens in float64, by the parallel algorithm of Chan, Golub and LeVeque."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0
        self._norms: Tensor | None = None

    def see_inputs(self, batch: PartInputs) -> None:
        values = batch.inputs_NPW.double()
        count, mean = values.shape[0], values.mean(0)
        total = self._count + count
        delta = mean - self._mean
        self._squares = self._squares + (values - mean).square().sum(0) + delta**2 * (self._count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._count, self._norms = total, batch.norms_PW.double()

    def see_routing(self, batch: RoutedTokens) -> None:
        raise NotImplementedError

    def values(self) -> list[float]:
        assert self._norms is not None
        found = self._squares / max(self._count - 1, 1) * self._norms**2
        return [float(value) for value in found.sum(-1).tolist()]
