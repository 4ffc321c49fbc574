"""A search for layers that can go: sets of layers, what the loss is without them, and which sets are tried next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from surgeon.core.scoring.score import Average

Gone = tuple[int, ...]
"""Positions of the layers that are removed, in order."""
Rises = Callable[[Sequence[Gone]], Mapping[Gone, Average]]
"""Measures by how much the loss rises without some layers, for several sets at once."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A set of layers that was tried.

    found_by: `search`, or the score that ranks these layers lowest.   rise: of the loss, in nats per token.
    front: whether no other candidate has as few parameters and as low a loss.   kept: whether it is the result.
    """

    layers: Gone
    found_by: str
    parameters: int
    rise: Average
    front: bool = False
    kept: bool = False


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a search step came to: the best set of each size, and the lowest layers by each score.

    step: its number in the recipe.   base_loss: of the model at that step, in nats per token.
    measured: how many sets were measured in all.   forwards: what that cost, in forwards of the whole model.
    """

    step: int
    data: str | None
    base_loss: float
    measured: int
    forwards: float
    candidates: list[Candidate]


def beam_search(free: Sequence[int], remove: int, width: int, rises: Rises) -> list[Gone]:
    """Return the best set found of each size up to `remove`; a width of 1 is greedy removal.

    Every set of a size is one of the best of the size before and one layer more, measured together: removing a layer
    changes what the others cost, so that nothing is taken over from the round before.
    """
    beam: list[Gone] = [()]
    best = []
    for _ in range(remove):
        wider = {tuple(sorted((*gone, layer))) for gone in beam for layer in free if layer not in gone}
        found = rises(sorted(wider))
        beam = sorted(found, key=lambda gone: (found[gone].value, gone))[:width]
        best.append(beam[0])
    return best


def with_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates with those marked that no other one beats in parameters and loss at once."""
    marked = []
    for one in candidates:
        beaten = any(
            other.parameters <= one.parameters
            and other.rise.value <= one.rise.value
            and (other.parameters, other.rise.value) != (one.parameters, one.rise.value)
            for other in candidates
        )
        marked.append(msgspec.structs.replace(one, front=not beaten))
    return marked
