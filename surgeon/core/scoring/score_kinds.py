"""Kinds of scores, by what they need of a model: its weights, activations, gradients, adapters, or a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import msgspec

from surgeon.core.parts.division import PartKind
from surgeon.core.registry import classes_of
from surgeon.core.scoring.score import Average

if TYPE_CHECKING:
    from torch import Tensor


Pass = Literal["weights", "activations", "inputs", "parts", "sweep", "gradients", "adapters", "learning"]


class ScoreKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every score declares. A subclass in `surgeon/scores/` adds the mathematics that its pass calls.

    name: as in recipes and on the command line.   title: at most 8 characters, a column header.
    asks: the question it answers.   cost: about what it costs, in words.   paper: where it comes from.
    needs: the pass that feeds it.   data: whether it reads calibration text.
    local: whether a layer's score depends on no layer behind it, and on nothing but its own row.
    part: the kind of parts of a layer that it gives a value each, if any: experts, neurons or heads.
    of_adapters: whether it is of the draft's own trained adapters, which all others leave out.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    asks: ClassVar[str]
    cost: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Pass]
    data: ClassVar[bool] = True
    local: ClassVar[bool] = False
    part: ClassVar[PartKind | Literal[""]] = ""
    of_adapters: ClassVar[bool] = False


class Matrix(Protocol):
    """One weight matrix as a person means it: fused projections apart, experts one by one."""

    @property
    def weight(self) -> Tensor:
        """The matrix, (rows, columns), in the dtype it is stored in."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def squared_norm(self) -> float:
        """The sum of all squared entries, in float64; computed once, when first asked for."""
        ...

    @property
    def singular_values(self) -> Tensor:
        """All singular values in float64, largest first; computed once, when first asked for."""
        ...


class WeightsScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of matrices, each seen once as it streams from disk.

    Most tell a matrix's score from the matrix alone. One that compares all matrices of the model sets `compares`,
    returns a small summary of plain numbers, lists and dicts instead, and turns all summaries into scores at the end.
    decomposes: it asks for singular values, which take most of the time.
    """

    needs = "weights"
    data = False
    decomposes: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    def matrix(self, matrix: Matrix) -> Any:
        """Return the score of one matrix as a float; where `compares`, a summary of it."""
        raise NotImplementedError

    def details(self, matrix: Matrix) -> Mapping[str, float]:
        """Return further numbers about one matrix that a person may want to see."""
        del matrix
        return {}

    def finalize(self, summaries: Sequence[Any]) -> list[float]:
        """Return the scores of all matrices from their summaries, where `compares`."""
        raise NotImplementedError

    def layer(self, matrices: Mapping[str, float]) -> float:
        """Return the score of a layer from those of its matrices, by name within it: their mean, unless changed."""
        return math.fsum(matrices.values()) / len(matrices) if matrices else 0.0


@dataclass(frozen=True)
class ActivationsContext:
    """What an activations pass tells a score before it starts.

    `targets_BT` holds, batch by batch, the label of each position: the token that follows, or -1 where none counts.
    `head` returns the output embedding (vocabulary, width); `final_norm(batch, hidden)` applies the norm before it.
    """

    layers: int
    targets_BT: Sequence[Tensor]
    head: Callable[[], Tensor]
    final_norm: Callable[[int, Tensor], Tensor]


class Collector(Protocol):
    """One activations score while it is being measured."""

    def see(self, layer: int, batch: int, hidden_in_BTD: Tensor, hidden_out_BTD: Tensor) -> None:
        """Take in the residual stream before and after one layer for one batch."""
        ...

    def value(self, layer: int) -> Average | None:
        """Return a layer's score once it has been seen over all batches; None if it takes more layers to tell."""
        ...

    def finish(self) -> ScoreSummary:
        """Return what could be told only at the end."""
        ...


@dataclass(frozen=True)
class ScoreSummary:
    """What a score adds at its end: remaining layers, scores of runs of adjacent layers, and further numbers.

    `blocks` maps a run's length to the scores by first layer.
    """

    values: Mapping[int, Average] = field(default_factory=dict)
    blocks: Mapping[int, Sequence[float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class ActivationsScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of the residual stream before and after each layer."""

    needs = "activations"

    def collector(self, setting: ActivationsContext) -> Collector:
        """Return what measures it once."""
        raise NotImplementedError


class InputsScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of each matrix and the covariance of what enters it."""

    needs = "inputs"
    local = True

    def matrix(self, weight: Tensor, covariance: Tensor) -> float:
        """Return the score of one matrix (out, in) whose inputs have this covariance (in, in), float64."""
        raise NotImplementedError

    def layer(self, matrices: Mapping[str, float]) -> float:
        """Return the score of a layer from those of its matrices: their mean, unless changed."""
        return math.fsum(matrices.values()) / len(matrices) if matrices else 0.0


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One layer in a layer sequence; `silenced` names sublayers (`attention`, `mlp`) whose output is left out."""

    layer: int
    silenced: frozenset[str] = frozenset()


LayerSequence = tuple[LayerCall, ...]


Losses = Mapping[str, Sequence[float]]


class SweepScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of the losses of layer sequences. Losses are in nats per token, one per calibration sequence."""

    needs = "sweep"

    def sequences(self, layers: int) -> Mapping[str, LayerSequence]:
        """Return the layer sequences whose losses it needs, by name; equal sequences are run once for all scores."""
        raise NotImplementedError

    def values(self, losses: Losses, layers: int) -> ScoreSummary:
        """Return the scores."""
        raise NotImplementedError


class GradientsScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of weights and the gradient of the loss of one calibration sequence, averaged over sequences.

    A layer's score is the sum over its matrices.
    """

    needs = "gradients"

    def matrix(self, weight: Tensor, gradient: Tensor) -> float:
        """Return the score of one matrix for one sequence; both have its shape."""
        raise NotImplementedError


@dataclass(frozen=True)
class LearnedValues:
    """What trainings said of each matrix. `matrices` and `details` go by adapter, see `plan.Adapter.name`."""

    matrices: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class LearningScore(ScoreKind, frozen=True, kw_only=True):
    """A score that is learned: the steps of a recipe, and how to read what its learning steps report.

    A layer's score is the mean over its matrices. Where `all` scores are asked for it is left out: it is a training.
    """

    needs = "learning"

    def recipe(self, data: str | None) -> Sequence[Mapping[str, Any]]:
        """Return the steps as they stand in a recipe, in order; the last are learning steps."""
        raise NotImplementedError

    def read(self, reports: Sequence[Mapping[str, Any]], seed: int) -> LearnedValues:
        """Return the scores from the reports of the learning steps."""
        raise NotImplementedError


class AdapterScore(ScoreKind, frozen=True, kw_only=True):
    """A score made of the draft's own trained adapters; a layer's is the mean over its matrices that have one."""

    needs = "adapters"
    data = False
    of_adapters = True

    def matrix(self, weight: Tensor, b_OR: Tensor, a_RI: Tensor) -> float:
        """Return the score of one matrix (outputs, inputs) and what is added to it, `b_OR @ a_RI`; float32."""
        raise NotImplementedError


def reads(kind: type[ScoreKind]) -> str:
    """Say in a word or two what has to be at hand to measure a score."""
    if kind.of_adapters:
        return "trained adapters"
    return f"text, {kind.needs}" if kind.data else "weights"


def score_kinds() -> dict[str, type[ScoreKind]]:
    """Return every score by name."""
    return classes_of("surgeon.scores", ScoreKind)
