"""What scores cost, told before they are measured: in forwards of the whole model, which is the same on any machine."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.scoring.layer_trie import Trie
from surgeon.core.scoring.score_kinds import LayerSequence, ScoreKind, SweepScore
from surgeon.core.structure.outside import outside_kind

_SHARED = {"activations": 1.0, "inputs": 1.0, "parts": 2.0, "gradients": 3.0}
"""What a pass costs for all of its scores together; a backward is two forwards."""


_LITTLE = 5.0


def expected_forwards(kinds: Sequence[ScoreKind], draft: Draft) -> dict[str, float]:
    """Return the forwards that each score or pass takes over the whole text, if nothing is known yet.

    Decompositions of matrices, which cost no forward, are not in it, nor is what is learned by training.
    """
    found = {name: cost for name, cost in _SHARED.items() if any(kind.needs == name for kind in kinds)}
    layers, head = len(draft.layers()), head_in_layers(draft)
    known: set[LayerSequence] = set()
    for kind in cheapest_first([kind for kind in kinds if isinstance(kind, SweepScore)], layers):
        fresh = {path: None for path in kind.sequences(layers).values() if path not in known}
        known |= fresh.keys()
        layer_forwards = Trie({f"{number}": path for number, path in enumerate(fresh)}).layer_forwards
        found[kind.name] = (layer_forwards + len(fresh) * head) / (layers + head)
    return found


def cost_text(kinds: Sequence[ScoreKind], draft: Draft, tokens: int) -> str:
    """Say what scores will cost on a text of that many tokens, the most expensive first; nothing where it is little."""
    forwards = expected_forwards(kinds, draft)
    if sum(forwards.values()) < _LITTLE:
        return ""
    parts = [f"{name} {cost:.0f}" for name, cost in sorted(forwards.items(), key=lambda item: -item[1])]
    alone = sum(kind.needs == "weights" for kind in kinds)
    said = [f"{alone} of weights alone"] if alone else []
    said.append(f"as much as {sum(forwards.values()):.0f} forwards of {tokens:,} tokens ({', '.join(parts)})")
    learned = sum(kind.needs == "learning" and kind.data for kind in kinds)
    if learned:
        said.append(f"{learned} learned by training")
    return "to measure: " + ", ".join(said)


def cheapest_first(kinds: Sequence[SweepScore], layers: int) -> list[SweepScore]:
    """Return sweeps in the order in which they are measured: the fewest layer sequences first."""
    return sorted(kinds, key=lambda kind: len(kind.sequences(layers)))


def head_in_layers(draft: Draft) -> float:
    """Return what the output head costs in units of a layer, by their numbers of weights."""
    structure = draft.structure
    # Tied, it is the embedding; wpe and the like are smaller.
    heads = [tensor.parameters for name, tensor in structure.outside.items() if outside_kind(name) != "norm"]
    head, stack = max(heads, default=0), structure.stack()
    weights = [layout_of(structure, stack, layer.source).parameters for layer in draft.layers()]
    return float(head * len(weights) / max(sum(weights), 1))
