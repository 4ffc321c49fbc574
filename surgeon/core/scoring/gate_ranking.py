"""Matrices whose gate no training reached: they rank below all others, in an order drawn by lot."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from surgeon.errors import ScoreError

_STEP = 1e-6
"""How far below the least important trained matrix, and each other, those lie that were not trained."""


def rank_values(gates: Mapping[str, tuple[float, bool]], seed: int, where: str) -> dict[str, float]:
    """Return what each matrix ranks by: its `s`, or below all of those where it was not trained.

    `gates` says of each its `s` and whether it was trained. Those that were not are in an order drawn from the names,
    the seed and what was learned: it favours no depth, and two data sets with one seed do not agree because of it.

    Raises:
        ScoreError: none was; `where` names the score.
    """
    known = [s for s, trained in gates.values() if trained]
    if not known:
        raise ScoreError(
            "no matrix was trained: every B is zero", where=where, hint="give more steps, or a larger learning_rate"
        )
    lot = f"{seed}:{sorted(s + 0.0 for s in known)}"  # -0.0 and 0.0 have no order
    drawn = sorted((name for name, (_, trained) in gates.items() if not trained), key=lambda name: _drawn(lot, name))
    floor = math.fsum((min(known), -_STEP * (len(drawn) + 1)))
    places = {name: floor + _STEP * place for place, name in enumerate(drawn, start=1)}
    return {name: places.get(name, s) for name, (s, _) in gates.items()}


def _drawn(lot: str, name: str) -> str:
    return hashlib.sha256(f"{lot}:{name}".encode()).hexdigest()


def gates_of(masks: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, tuple[float, bool]], list[str], list[str]]:
    """Return what `learn_masks` reports by adapter: its `s` and whether it was trained; who was not; that in words."""
    gates = {name: (float(mask["s"]), bool(mask["trained"])) for name, mask in masks.items()}
    untrained = [name for name, (_, trained) in gates.items() if not trained]
    text = f"{len(untrained)} of {len(gates)} matrices were not trained: they rank lowest, by lot"
    return gates, untrained, [text] if untrained else []
