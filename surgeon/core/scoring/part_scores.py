"""Scores of the parts of layers: experts, neurons of the MLP, key-value heads; a value for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from surgeon.core.scoring.score_kinds import ScoreKind

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PartInputs:
    """What enters the matrix that leads out of a sublayer, part by part.

    inputs_NPW: tokens, parts, and how many of the matrix' inputs one part is.
    norms_PW: the Euclidean norms of the columns of the matrix (out, in) that these inputs are multiplied with.
    """

    inputs_NPW: Tensor
    norms_PW: Tensor


@dataclass(frozen=True)
class RoutedTokens:
    """Which experts the tokens of a batch go to.

    gates_NE: the weight of each expert in each token's sum, 0 where it does not go there.   chosen_NE: where it goes.
    output_norms_NE: called, the Euclidean norms of what the experts put out for the tokens that go there, 0 elsewhere.
    """

    gates_NE: Tensor
    chosen_NE: Tensor
    output_norms_NE: Callable[[], Tensor]


class PartCollector(Protocol):
    """A score of the parts of one layer while it is measured."""

    def see_inputs(self, batch: PartInputs) -> None:
        """Take in a batch, where parts are neurons or heads."""
        ...

    def see_routing(self, batch: RoutedTokens) -> None:
        """Take in a batch, where parts are experts."""
        ...

    def values(self) -> list[float]:
        """Return the score of each part, in order."""
        ...


class MeanCollector:
    """Sums over tokens; what is summed is told by a kind of score. Position by position nothing is left out."""

    def __init__(
        self,
        of_inputs: Callable[[PartInputs], Tensor] | None = None,
        of_routing: Callable[[RoutedTokens], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Start with nothing seen; `of_routing` returns sums by expert and what they are divided by at the end."""
        self._of_inputs, self._of_routing = of_inputs, of_routing
        self._sum: Tensor | None = None
        self._count: Tensor | float = 0.0

    def see_inputs(self, batch: PartInputs) -> None:
        """Add up what one batch gives, over its tokens."""
        assert self._of_inputs is not None
        self._add(self._of_inputs(batch).double().sum(0), float(batch.inputs_NPW.shape[0]))

    def see_routing(self, batch: RoutedTokens) -> None:
        """Add up what one batch gives, by expert."""
        assert self._of_routing is not None
        self._add(*self._of_routing(batch))

    def _add(self, total: Tensor, count: Tensor | float) -> None:
        self._sum = total if self._sum is None else self._sum + total
        self._count = self._count + count

    def values(self) -> list[float]:
        """Return the means; 0 for what no token reached."""
        assert self._sum is not None
        count = self._count
        found = self._sum / (count if isinstance(count, float) else count.clamp(min=1))
        return [float(value) for value in found.tolist()]


class PartScore(ScoreKind, frozen=True, kw_only=True):
    """A score with a value for each part of a layer. That of the layer is their mean, 0 where it has no such parts."""

    needs = "parts"

    def collector(self) -> PartCollector:
        """Return what measures one layer."""
        raise NotImplementedError

    def layer(self, parts: Sequence[float]) -> float:
        """Return the score of a layer from those of its parts."""
        return math.fsum(parts) / len(parts) if parts else 0.0
