"""A score: one number per layer, higher means more important, and everything that produced it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from surgeon.core.registry import classes_of

if TYPE_CHECKING:
    from torch import Tensor

Pass = Literal["weights", "activations", "sweep", "gradients", "learning"]


class ScoreKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every score declares. A subclass in `surgeon/scores/` adds the mathematics that its pass calls.

    name: as in recipes and on the command line.   title: at most 8 characters, a column header.
    asks: the question it answers.   paper: where it comes from.   needs: the pass that feeds it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    asks: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Pass]


class WeightsScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of matrices, each seen once as it streams from disk."""

    needs = "weights"

    def matrix(self, weight: Tensor) -> float:
        """Return the score of one matrix as stored."""
        raise NotImplementedError

    def layer(self, matrices: Mapping[str, float]) -> float:
        """Return the score of a layer from those of its matrices, by tensor name within the layer."""
        raise NotImplementedError


class ActivationsScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of the residual stream before and after each layer, averaged over sequences."""

    needs = "activations"

    def sequences(self, hidden_in_BTD: Tensor, hidden_out_BTD: Tensor) -> Tensor:
        """Return one value per sequence; shape (batch,)."""
        raise NotImplementedError


def score_kinds() -> dict[str, type[ScoreKind]]:
    """Return every score by name."""
    return classes_of("surgeon.scores", ScoreKind)


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What produced a score. Two scores with equal provenance are the same numbers."""

    fingerprint: str
    draft: str = ""
    data: str = ""
    sequences: int = 0
    length: int = 0
    seed: int = 0
    dtype: str = ""
    settings: dict[str, Any] = {}


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A measured score.

    values: by layer key (see `draft.Layer.key`).   errors: standard error of each value, where it is an average.
    matrices: by layer key, then by tensor name within the layer, where the score is made of matrices.
    """

    name: str
    values: dict[str, float]
    errors: dict[str, float] = {}
    matrices: dict[str, dict[str, float]] = {}
    provenance: Provenance

    def ranking(self, keys: Sequence[str]) -> list[str]:
        """Return the keys from least to most important; ties keep the order they came in."""
        return sorted(keys, key=lambda key: self.values[key])


Scores = Mapping[str, Score]
