"""An order of layers, of one model or of several, as steps: prune, expand, reorder, graft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from surgeon.core.selection.spans import spans


class Place(NamedTuple):
    """What stands at a place: a layer of a model, None for the base, or it silenced to an identity."""

    model: str | None
    layer: int
    silenced: bool = False


class _Copy(NamedTuple):
    layer: int
    kind: str
    """`kept`, or the `init` of the expand step that inserts it."""


def sequence_steps(wanted: Sequence[Place], count: int, stack: dict[str, str]) -> list[dict[str, Any]]:
    """Return the steps that turn the layers 0 to `count` - 1 of the base into a sequence of places.

    `stack` is what every step says of the stack, if anything.
    """
    own = [place for place in wanted if place.model is None]
    kept = sorted({place.layer for place in own})
    steps: list[dict[str, Any]] = []
    gone = [layer for layer in range(count) if layer not in kept]
    if gone:
        steps.append({"prune": {"layers": spans(gone), **stack}})
    order = [_Copy(layer, "kept") for layer in kept]
    for init, again in (("copy", _counts(own, silenced=True)), ("duplicate", _duplicates(own))):
        while again:
            after = [at for at, one in enumerate(order) if one.kind == "kept" and again[one.layer]]
            steps.append({"expand": {"after": spans(after), "init": init, **stack}})
            again -= Counter(order[at].layer for at in after)
            order = [copy for at, one in enumerate(order) for copy in _inserted(one, init, twice=at in after)]
    spare = [at for at, one in enumerate(order) if one.kind == "kept" and not _counts(own)[one.layer]]
    if spare:
        steps.append({"prune": {"layers": spans(spare), **stack}})
        order = [one for at, one in enumerate(order) if at not in spare]
    moved = list(_positions(own, order))
    if moved != sorted(moved):
        steps.append({"reorder": {"order": moved, **stack}})
    return steps + list(_grafts(wanted, stack))


def _inserted(one: _Copy, init: str, *, twice: bool) -> tuple[_Copy, ...]:
    return (one, _Copy(one.layer, init)) if twice else (one,)


def _counts(own: Sequence[Place], *, silenced: bool = False) -> Counter[int]:
    return Counter(place.layer for place in own if place.silenced is silenced)


def _duplicates(own: Sequence[Place]) -> Counter[int]:
    return Counter({layer: times - 1 for layer, times in _counts(own).items() if times > 1})


def _positions(own: Sequence[Place], order: Sequence[_Copy]) -> Iterator[int]:
    """Yield where the layer of each place stands; of several that are alike the first that is left."""
    free: dict[tuple[int, bool], list[int]] = {}
    for at, one in enumerate(order):
        free.setdefault((one.layer, one.kind == "copy"), []).append(at)
    for place in own:
        yield free[place.layer, place.silenced].pop(0)


def _grafts(wanted: Sequence[Place], stack: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield a step for each run of layers of another model that follow each other there too."""
    at = 0
    while at < len(wanted):
        end = at + 1
        first = wanted[at]
        while end < len(wanted) and wanted[end] == first._replace(layer=first.layer + end - at):
            end += 1
        if first.model is not None:
            layers = spans(range(first.layer, first.layer + end - at))
            yield {"graft": {"from": first.model, "layers": layers, "after": at - 1, **stack}}
        at = end
