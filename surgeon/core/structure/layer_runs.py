"""What is numbered in a checkpoint, and by which names files speak of it: the layers of stacks, and other towers.

Names differ from file to file: `language_model.model.layers.3` in the shards is `model.language_model.layers.3` in
memory, and `layers.3` in a list that lies within the part of the config that describes the stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import msgspec

from surgeon.core.structure.layouts import LayerTensors, Layout

_WRAPPERS = re.compile(
    r"(?:(?:module|model|base_model|_orig_mod|language_model|text_model|transformer|thinker|llm|decoder)\.)+"
)
"""What may stand before the name of the text model's layers and be left out."""
_OTHER_TOWERS = re.compile(
    r"(?:^|[._])(?:vision|visual|vit|image|audio|speech|sam|qformer|perceiver|patch|mtp|talker|code2wav|token2wav"
    r"|encoder|draft|depth_decoder)"
)
"""In names of what the checkpoint does not hold: of another tower than the stack's."""


class Moves(msgspec.Struct, frozen=True, dict=True):
    """Where the layers of a stack have gone.

    origins: for each place, the layer of the base that stands there.   count: how many the base has.
    """

    origins: Sequence[int]
    count: int

    @cached_property
    def moved(self) -> bool:
        """Whether any layer has another number than before, or is gone."""
        return list(self.origins) != list(range(self.count))

    @cached_property
    def _places(self) -> Mapping[int, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for place, origin in enumerate(self.origins):
            found.setdefault(origin, []).append(place)
        return {origin: tuple(places) for origin, places in found.items()}

    def places(self, number: int) -> tuple[int, ...]:
        """Return the numbers that a layer has now; what is numbered behind the last one stays behind it."""
        if number >= self.count:
            return (number - self.count + len(self.origins),)
        return self._places.get(number, ())

    def pairs(self, tail: int) -> Iterator[tuple[int, int]]:
        """Yield (place, the number of the base that stands there), with what is numbered behind the last layer."""
        yield from enumerate(self.origins)
        yield from ((len(self.origins) + more, self.count + more) for more in range(tail))


class LayerRun(msgspec.Struct, frozen=True, eq=False, dict=True):
    """What is numbered under one prefix.

    name: the stack's; empty for another tower, whose numbers never change.
    prefixes: what stands before the number, the checkpoint's own first.   layers: with those behind the last one.
    count: how many the config counts.   paths: the parts of the config that describe them.
    """

    name: str
    prefixes: tuple[str, ...]
    layers: Sequence[LayerTensors]
    count: int
    paths: tuple[tuple[str, ...], ...] = ()

    @property
    def container(self) -> str:
        """The word before the number."""
        return self.prefixes[0].rpartition(".")[2]

    @property
    def tail(self) -> int:
        """How many are numbered behind the last layer."""
        return len(self.layers) - self.count

    def modules(self, number: int) -> frozenset[str]:
        """Return the names of modules and parameters within a layer."""
        if number >= len(self.layers):
            return frozenset()
        layout = self.layers[number].layout
        if layout not in self._modules:
            self._modules[layout] = frozenset(_ancestors(layout))
        return self._modules[layout]

    @cached_property
    def _modules(self) -> dict[Layout, frozenset[str]]:
        return {}


def _ancestors(layout: Layout) -> Iterator[str]:
    for suffix in layout.types:
        parts = suffix.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def text_prefixes(prefix: str) -> tuple[str, ...]:
    """Return the prefix of a text model's layers beside other towers, and the others by which they go elsewhere."""
    match = re.fullmatch(r"(?:model\.)?(?:language_model\.)?(?:model\.)?(?P<rest>[^.]+)", prefix)
    names = ("language_model.model", "model.language_model", "model.language_model.model", "language_model", "model")
    return (prefix, *(f"{name}.{match['rest']}" for name in names if match and f"{name}.{match['rest']}" != prefix))


def run_of(runs: Sequence[LayerRun], head: str, scope: LayerRun | None) -> LayerRun | bool | None:
    """Return the run that `head`, what stands before a number, means; False if it is none; None if nobody can tell.

    scope: the run that the part of the config is about in which the name stands.
    """
    exact = [run for run in runs if run.prefixes[0] == head] or [run for run in runs if head in run.prefixes]
    if exact:
        return exact[0] if len(exact) == 1 else None
    # One side lacks what the other begins with.
    shorter = [run for run in runs if any(name.endswith(f".{head}") for name in run.prefixes)]
    if scope is not None and scope in shorter:
        return scope
    if shorter:
        return shorter[0] if len(shorter) == 1 else None
    longer = [run for run in runs for name in run.prefixes if head.endswith(f".{name}")]
    longer = [run for run in dict.fromkeys(longer) if not run.name or _is_wrapped(head, run)]
    if longer:
        return longer[0] if len(longer) == 1 else None
    if not any(run.name and run.container == head.rpartition(".")[2] for run in runs):
        return False
    return False if _OTHER_TOWERS.search(head) else None


def _is_wrapped(head: str, run: LayerRun) -> bool:
    """Whether what a name has more than the run's is a wrapper, and not the name of another tower."""
    return any(
        _WRAPPERS.fullmatch(head.removesuffix(name)) is not None for name in run.prefixes if head.endswith(f".{name}")
    )
