"""Scores of the losses of layer sequences: each distinct sequence is measured once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from surgeon.backend.scoring.context import ScoringContext
from surgeon.backend.scoring.layer_sequence_losses import sweep_losses
from surgeon.backend.scoring.tally import Tally
from surgeon.core.scoring.costs import affordable, cheapest_first, head_in_layers
from surgeon.core.scoring.score import Provenance, Score
from surgeon.core.scoring.score_kinds import LayerSequence, SweepScore
from surgeon.errors import ArchitectureError

# Which tensors' module puts out what a sublayer adds to the residual stream.
_OUTPUTS = {"attention": ("attention.output", "mixer.output"), "mlp": ("mlp.down", "experts.down")}


def sweep_pass(context: ScoringContext, kinds: Sequence[SweepScore], provenance: Provenance) -> dict[str, Score]:
    """Measure the losses of all layer sequences that any score asked for, each distinct one once.

    One score after the other, the cheapest first, so that rows come early; all of them together where layers lie on
    disk, so that those are read once.
    """
    layers = len(context.keys)
    ordered = cheapest_first(kinds, layers)
    sweep = _Sweep(context, provenance)
    for together in [ordered] if context.streamed else [[kind] for kind in ordered]:
        sweep.measure({kind: _affordable(context, kind, [], kind.sequences(layers)) for kind in together})
    return sweep.found


@dataclass
class _Sweep:
    """The losses that are known, and the scores that came of them."""

    context: ScoringContext
    provenance: Provenance
    losses: dict[LayerSequence, list[float]] = field(default_factory=dict)
    found: dict[str, Score] = field(default_factory=dict)

    def measure(self, asked: dict[SweepScore, dict[str, LayerSequence]]) -> None:
        """Measure what is asked for and what that makes worth knowing, until every score is settled."""
        while asked:
            wanted = {path: None for paths in asked.values() for path in paths.values() if path not in self.losses}
            for path, values in path_losses(self.context, list(wanted), " ".join(kind.name for kind in asked)):
                self.losses[path] = values
                for kind in [kind for kind in asked if kind.most_forwards is None and self._complete(asked[kind])]:
                    self._settle(kind, asked.pop(kind))
            for kind, paths in list(asked.items()):  # another has measured it all, or it may want more
                more = self._more(kind, paths)
                if more:
                    asked[kind] = {**paths, **more}
                else:
                    self._settle(kind, asked.pop(kind))

    def _complete(self, paths: Mapping[str, LayerSequence]) -> bool:
        return all(path in self.losses for path in paths.values())

    def _settle(self, kind: SweepScore, paths: Mapping[str, LayerSequence]) -> None:
        self.found[kind.name] = _ranked_values(self.context, kind, paths, self.losses, self.provenance)

    def _more(self, kind: SweepScore, paths: dict[str, LayerSequence]) -> dict[str, LayerSequence]:
        """Return what a score wants to know next, as far as it may."""
        if kind.most_forwards is None:
            return {}
        known = {name: self.losses[path] for name, path in paths.items()}
        wanted = kind.more_sequences(known, len(self.context.keys))
        return _affordable(self.context, kind, list(paths.values()), wanted)


def _affordable(
    context: ScoringContext, kind: SweepScore, known: list[LayerSequence], wanted: Mapping[str, LayerSequence]
) -> dict[str, LayerSequence]:
    """Return the first of the wanted sequences, as many as a score may have measured."""
    if kind.most_forwards is None or not wanted:
        return dict(wanted)
    head = head_in_layers(context.draft)
    count = affordable(known, list(wanted.values()), kind.most_forwards, len(context.keys), head)
    return dict(islice(wanted.items(), count if known else max(count, 2)))  # something beside the whole model


def path_losses(
    context: ScoringContext, paths: Sequence[LayerSequence], what: str
) -> Iterator[tuple[LayerSequence, list[float]]]:
    """Yield the losses of distinct layer sequences, in nats per token, one for each calibration sequence."""
    measured = sweep_losses(
        context.runner, context.batches, {f"{number}": path for number, path in enumerate(paths)},
        context.job.is_cancelled,
        lambda layer, gone: _silence(context, layer, gone),
        lambda done, total: context.progress(done, total, what, "layer forwards"), context.room,
    )  # fmt: skip
    for done, (name, values) in enumerate(measured if paths else (), start=1):
        context.progress(done, len(paths), what, "losses")
        yield paths[int(name)], values


def _ranked_values(
    context: ScoringContext,
    kind: SweepScore,
    asked: Mapping[str, LayerSequence],
    losses: Mapping[LayerSequence, list[float]],
    provenance: Provenance,
) -> Score:
    tally = Tally()
    tally.finish(kind.values({name: losses[path] for name, path in asked.items()}, len(context.keys)))
    for layer, value in sorted(tally.values.items()):
        context.scored(kind.name, layer, value)
    return tally.score(kind, context.keys, provenance)


def _silence(context: ScoringContext, layer: nn.Module, gone: frozenset[str]) -> ExitStack:
    stack = ExitStack()
    structure = context.draft.structure
    for sublayer in gone:
        children = {
            name.partition(".")[0] for name, _ in layer.named_parameters() if structure.role(name) in _OUTPUTS[sublayer]
        }
        if not children:
            raise ArchitectureError(f"no {sublayer} sublayer is known in its layers", where=structure.model_type)
        for child in children:
            stack.enter_context(layer.get_submodule(child).register_forward_hook(_zero))
    return stack


def _zero(_module: nn.Module, _args: object, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
