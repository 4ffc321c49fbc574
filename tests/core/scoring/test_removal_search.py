"""The search for layers that can go: against all sets, on losses that were made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.scoring.removal_search import Candidate, Gone, beam_search, with_front
from surgeon.core.scoring.score import Average


class Losses:
    """A rise for every set, drawn when it is first asked for."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng
        self.known: dict[Gone, Average] = {}
        self.asked: list[list[Gone]] = []

    def __call__(self, sets: Sequence[Gone]) -> Mapping[Gone, Average]:
        self.asked.append(list(sets))
        return {gone: self.known.setdefault(gone, Average(self.rng.random())) for gone in sets}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(1, 4), st.randoms())
def test_greedy_removes_the_best_layer_of_each_round_and_a_wide_beam_finds_the_best_set(
    free: int, remove: int, rng: Any
) -> None:
    remove = min(remove, free)
    losses = Losses(rng)
    greedy = beam_search(range(free), remove, 1, losses)
    assert [len(gone) for gone in greedy] == list(range(1, remove + 1))
    before: Gone = ()
    for gone in greedy:
        one_more = [tuple(sorted((*before, layer))) for layer in range(free) if layer not in before]
        assert gone == min(one_more, key=lambda one: losses.known[one].value)
        before = gone
    everything = beam_search(range(free), remove, 10_000, losses)
    for size, gone in enumerate(everything, start=1):
        assert gone == min(combinations(range(free), size), key=lambda one: losses.known[one].value)


def test_the_front_is_what_nothing_beats_in_parameters_and_loss() -> None:
    points = [(10, 0.5), (10, 0.4), (8, 0.4), (6, 0.9), (6, 0.9), (7, 0.3)]
    tried = [
        Candidate(layers=(at,), found_by="search", parameters=size, rise=Average(rise))
        for at, (size, rise) in enumerate(points)
    ]
    assert [one.front for one in with_front(tried)] == [False, False, False, True, True, True]
