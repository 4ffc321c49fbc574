"""The model as it will be: which layers, where each comes from, and how it was changed. Pure data, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.parts.division import PartKind
from surgeon.core.structure.layouts import LayerTensors
from surgeon.core.structure.structure import Stack, Structure

OUTSIDE = ("embedding", "head", "norm")
"""What belongs to no layer and can be frozen: the token embedding, the output head, the rest (the final norm)."""


@dataclass(frozen=True, slots=True)
class Original:
    """The weights of a layer of the base."""

    index: int


@dataclass(frozen=True, slots=True)
class Grafted:
    """The weights of a layer of another model, which its fingerprint names; see `structure.Donor`."""

    donor: str
    index: int


@dataclass(frozen=True, slots=True)
class Mean:
    """The element-wise mean of several layers' weights, all alike in it, computed in float32 and rounded once."""

    parts: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """A layer's weights with its residual outputs silenced, so that it passes its input through bit for bit."""

    of: Source


@dataclass(frozen=True, slots=True)
class Truncation:
    """Which singular directions of a matrix go: all beyond `rank`, or tenths; 1 is the largest, 10 the smallest."""

    deciles: tuple[int, ...] = ()
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Truncated:
    """A layer's weights with singular directions of the matrices of some roles set to zero."""

    of: Source
    roles: frozenset[str]
    how: Truncation


@dataclass(frozen=True, slots=True)
class Learned:
    """A layer's weights after a learned step: what the result at `address` holds under `key` replaces those of `of`."""

    of: Source
    address: str
    key: str


@dataclass(frozen=True, slots=True)
class Part:
    """Some experts, neurons or key-value heads of a layer, by their numbers in it, in the order in which they stay."""

    of: Source
    kind: PartKind
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Silenced:
    """A layer of which some sublayers, `attention` or `mlp`, put out zeros."""

    of: Source
    sublayers: frozenset[str]


Source = Original | Grafted | Mean | Identity | Truncated | Learned | Part | Silenced


@dataclass(frozen=True, slots=True)
class Lora:
    """A low-rank adapter on one matrix, and its gate: `y = W x + sigmoid(gate) * (alpha / rank) * B A x`.

    `address` is where its values were learned; None where it is as it was attached: A random, B zero.
    """

    rank: int
    alpha: float
    gate: float
    address: str | None = None


@dataclass(frozen=True)
class Layer:
    """One layer of a draft.

    key: names it for as long as it lives, whatever its position: `12` for layer 12 of the base, `12+1` for the first
        layer inserted after it.
    original: its position in the base; None if it was inserted.
    settings: what the per-layer config fields say about it.
    frozen: roles that later training leaves as they are.
    lora: adapters by role.
    """

    key: str
    source: Source
    original: int | None
    settings: Mapping[str, Any]
    frozen: frozenset[str] = frozenset()
    lora: Mapping[str, Lora] = field(default_factory=dict)

    @property
    def inserted(self) -> bool:
        """Whether an operation made it."""
        return self.original is None


@dataclass(frozen=True)
class Draft:
    """The model as it will be.

    frozen: what is frozen of `OUTSIDE`.
    learned: addresses of results that may hold tensors outside the layers, the newest last.
    mask: the address of a weight mask: later training changes no weight outside it.
    untied: once the head has weights of its own, what was `learned` when it was untied from the embedding.
    root: the recipe's directory, which names of other models are relative to.
    """

    structure: Structure
    stacks: Mapping[str, tuple[Layer, ...]]
    frozen: frozenset[str] = frozenset()
    learned: tuple[str, ...] = ()
    mask: str | None = None
    untied: tuple[str, ...] | None = None
    root: Path = field(default=Path(), compare=False)

    def layers(self, stack: str | None = None) -> tuple[Layer, ...]:
        """Return the layers of one stack, the default one if none is named."""
        return self.stacks[self.structure.stack(stack).name]

    def with_layers(self, layers: tuple[Layer, ...], stack: str | None = None) -> Draft:
        """Return the draft with one stack's layers replaced."""
        return replace(self, stacks={**self.stacks, self.structure.stack(stack).name: layers})

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Every checkpoint that weights come from, the base first."""
        donors = {name: donor for stack in self.structure.stacks.values() for name, donor in stack.donors.items()}
        return (self.structure.checkpoint, *(donor.checkpoint for _, donor in sorted(donors.items())))

    @property
    def moved(self) -> bool:
        """Whether the weights differ from the base's: a layer was removed, inserted, reordered, computed or trained."""
        return (
            bool(self.learned)
            or self.untied is not None
            or any(
                [layer.source for layer in layers]
                != [Original(index) for index in range(len(self.structure.stacks[name].layers))]
                for name, layers in self.stacks.items()
            )
        )

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name the weights and their order; freezes and adapters do not count."""
        weights: Any = {name: [layer.source for layer in layers] for name, layers in self.stacks.items()}
        if self.learned or self.untied is not None:
            weights = (weights, self.learned, self.untied)
        return _digest_of(weights)

    @property
    def adapted_digest(self) -> str:
        """Sixteen hex digits that name the weights, their order and the adapters on them."""
        lora = {name: [sorted(layer.lora.items()) for layer in layers] for name, layers in self.stacks.items()}
        return _digest_of((self.digest, lora))

    @property
    def measured_digest(self) -> str:
        """Sixteen hex digits that name the weights, their order and the trained adapters: what the model computes."""
        lora = {name: [_trained(layer) for layer in layers] for name, layers in self.stacks.items()}
        return _digest_of((self.digest, lora)) if any(map(any, lora.values())) else self.digest

    def is_what(self, digest: str, *, weights_only: bool = False) -> bool:
        """Whether a score with this digest in its provenance was measured on this draft, or on its weights alone."""
        return digest == self.digest if weights_only else digest in (self.measured_digest, self.adapted_digest)

    @property
    def trained_adapters(self) -> bool:
        """Whether any layer carries an adapter that was trained."""
        return any(_trained(layer) for layers in self.stacks.values() for layer in layers)

    @property
    def adapted(self) -> bool:
        """Whether any layer carries an adapter."""
        return any(layer.lora for layers in self.stacks.values() for layer in layers)

    def new_key(self, parent: Layer, stack: str | None = None) -> str:
        """Return an unused key for a layer inserted after `parent`."""
        taken = {layer.key for layer in self.layers(stack)}
        number = 1
        while f"{parent.key}+{number}" in taken:
            number += 1
        return f"{parent.key}+{number}"


def _trained(layer: Layer) -> list[tuple[str, Lora]]:
    return sorted((role, lora) for role, lora in layer.lora.items() if lora.address is not None)


def _digest_of(plain: Any) -> str:
    import hashlib  # late: with it comes OpenSSL, and who looks at a model needs neither

    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:16]


def draft_of(structure: Structure, root: Path = Path()) -> Draft:
    """Return the draft that is the base itself, of a recipe in the directory `root`."""
    return Draft(structure, {name: _base_layers(stack) for name, stack in structure.stacks.items()}, root=root)


def _base_layers(stack: Stack) -> tuple[Layer, ...]:
    return tuple(
        Layer(key=str(index), source=Original(index), original=index, settings=settings)
        for index, settings in enumerate(stack.settings)
    )


def leaf(source: Source) -> Original | Grafted:
    """Return the stored layer that gives a source its names and shapes: the first it is made of."""
    while not isinstance(source, Original | Grafted):
        source = source.parts[0] if isinstance(source, Mean) else source.of
    return source


def base_tensors(source: Source, stack: Stack) -> LayerTensors:
    """Return the stored tensors, by name within the layer, that a source is made of; see `layer_layouts`."""
    stored = leaf(source)
    layers = stack.donors[stored.donor].layers if isinstance(stored, Grafted) else stack.layers
    return layers[stored.index]
