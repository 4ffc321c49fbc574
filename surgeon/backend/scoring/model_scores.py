"""Scores that need the model to run: what each pass gives, put together into scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgeon.backend.model.matrices import matrices_of
from surgeon.backend.model.quantised_models import require_values
from surgeon.backend.model.streaming import weights_of
from surgeon.backend.scoring.context import Row, ScoringContext
from surgeon.backend.scoring.layer_passes import InputCovariance, push_layers, sequence_gradients
from surgeon.backend.scoring.layer_sequence_losses import sweep_losses
from surgeon.core.plan.layer_layouts import config_of
from surgeon.core.scoring.costs import cheapest_first
from surgeon.core.scoring.score import Average, Provenance, Score, average
from surgeon.core.scoring.score_kinds import (
    ActivationsContext,
    ActivationsScore,
    Collector,
    GradientsScore,
    InputsScore,
    LayerSequence,
    ScoreKind,
    ScoreSummary,
    SweepScore,
)
from surgeon.errors import ArchitectureError, ScoreError

# Which tensors' module puts out what a sublayer adds to the residual stream.
_OUTPUTS = {"attention": ("attention.output", "mixer.output"), "mlp": ("mlp.down", "experts.down")}


@dataclass
class _Tally:
    """One score while its pass is running."""

    values: dict[int, Average] = field(default_factory=dict)
    matrices: dict[str, dict[str, float]] = field(default_factory=dict)
    blocks: dict[int, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def finish(self, end: ScoreSummary) -> None:
        self.values |= end.values
        self.blocks |= {length: list(values) for length, values in end.blocks.items()}
        self.details |= end.details

    def score(self, kind: ScoreKind, keys: Sequence[str], provenance: Provenance) -> Score:
        return Score(
            name=kind.name, values={keys[layer]: one.value for layer, one in sorted(self.values.items())},
            errors={keys[layer]: one.error for layer, one in sorted(self.values.items()) if one.error is not None},
            matrices=self.matrices, blocks=self.blocks, details=self.details, provenance=provenance,
            notes=tuple(warn_if_too_few_data(self.values)),
        )  # fmt: skip


def warn_if_too_few_data(values: Mapping[int, Average]) -> Iterable[str]:
    """Warn where the data are too few to tell the two least important layers apart."""
    ranked = sorted((one.value, one.error, layer) for layer, one in values.items() if one.error is not None)
    if len(ranked) > 1:
        (low, low_error, first), (high, high_error, second) = ranked[:2]
        if high - low < 2 * (low_error**2 + high_error**2) ** 0.5:
            yield f"too few data to tell the least important layers, {first} and {second}, apart: give more sequences"


@torch.inference_mode()
def activations_pass(
    context: ScoringContext, kinds: Sequence[ActivationsScore], provenance: Provenance
) -> dict[str, Score]:
    """Push every layer over all batches once, and let every score watch."""
    setting = ActivationsContext(
        layers=len(context.keys), targets_BT=context.targets, head=lambda: _head(context.model),
        final_norm=lambda batch, hidden_BTD: context.runner.normed(context.batches[batch], hidden_BTD),
    )  # fmt: skip
    collectors: dict[str, Collector] = {kind.name: kind.collector(setting) for kind in kinds}
    tallies = {kind.name: _Tally() for kind in kinds}
    for one in push_layers(context.runner, context.batches, context.job.is_cancelled, context.room):
        for name, collector in collectors.items():
            known = context.known.get(name, {}).get(one.layer)
            if known is not None:
                if one.last:
                    _retell(context, tallies[name], name, one.layer, known)
                continue
            collector.see(one.layer, one.batch, one.hidden_in_BTD, one.hidden_out_BTD)
            value = collector.value(one.layer) if one.last else None
            if value is not None:
                tallies[name].values[one.layer] = value
                context.scored(name, one.layer, value)
        if one.last:
            context.progress(one.layer + 1, len(context.keys), "activations")
    for name, collector in collectors.items():
        tallies[name].finish(collector.finish())
    return {kind.name: tallies[kind.name].score(kind, context.keys, provenance) for kind in kinds}


def _retell(context: ScoringContext, tally: _Tally, name: str, layer: int, known: Row) -> None:
    """Take over a row that no operation has made stale."""
    value = Average(known.value, known.error)
    tally.values[layer] = value
    if known.matrices:
        tally.matrices[context.keys[layer]] = known.matrices
    context.scored(name, layer, value, known.matrices or None)


def _head(model: nn.Module) -> torch.Tensor:
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ArchitectureError("has no output head", where=type(model).__name__)
    weight: torch.Tensor = head.weight
    return weight


@torch.inference_mode()
def inputs_pass(context: ScoringContext, kinds: Sequence[InputsScore], provenance: Provenance) -> dict[str, Score]:
    """Push every layer over all batches once, and compare each matrix with the covariance of what entered it."""
    require_values(context.draft.structure, context.runner.layers, ", ".join(kind.name for kind in kinds))
    tallies = {kind.name: _Tally() for kind in kinds}
    covariance = InputCovariance()

    def watch(number: int, layer: nn.Module) -> ExitStack:
        known = all(number in context.known.get(kind.name, {}) for kind in kinds)
        return ExitStack() if known else covariance.watch(layer)

    for one in push_layers(context.runner, context.batches, context.job.is_cancelled, context.room, watch):
        if not one.last:
            continue
        entered = covariance.take()
        for kind in kinds:
            known = context.known.get(kind.name, {}).get(one.layer)
            if known is not None:
                _retell(context, tallies[kind.name], kind.name, one.layer, known)
                continue
            row = _compare(context, kind, one.layer, entered)
            value = Average(kind.layer(row))
            tallies[kind.name].values[one.layer] = value
            tallies[kind.name].matrices[context.keys[one.layer]] = row
            context.scored(kind.name, one.layer, value, row)
        context.progress(one.layer + 1, len(context.keys), "inputs")
    return {kind.name: tallies[kind.name].score(kind, context.keys, provenance) for kind in kinds}


def _compare(
    context: ScoringContext, kind: InputsScore, number: int, entered: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    structure = context.draft.structure
    config = config_of(structure, structure.stack(), context.draft.layers()[number].source)
    modules = dict(context.runner.layers[number].named_modules())
    row: dict[str, float] = {}
    for name, covariance in entered.items():
        transposed = structure.role(f"{name}.weight") in structure.family.transposed
        weight = context.with_update(modules[name], modules[name].weight)
        for part, matrix in matrices_of(structure, config, f"{name}.weight", weight):
            row[part] = kind.matrix(matrix.weight.T if transposed else matrix.weight, covariance)
    return row


def sweep_pass(context: ScoringContext, kinds: Sequence[SweepScore], provenance: Provenance) -> dict[str, Score]:
    """Measure the losses of all layer sequences that any score asked for, each distinct one once.

    One score after the other, the cheapest first, so that rows come early; all of them together where layers lie on
    disk, so that those are read once.
    """
    layers = len(context.keys)
    ordered = cheapest_first(kinds, layers)
    asked = {kind.name: kind.sequences(layers) for kind in kinds}
    losses: dict[LayerSequence, list[float]] = {}
    found: dict[str, Score] = {}
    for together in [ordered] if context.streamed else [[kind] for kind in ordered]:
        wanted = {path: None for kind in together for path in asked[kind.name].values() if path not in losses}
        waiting = list(together)
        for path, values in _losses(context, list(wanted), " ".join(kind.name for kind in together)):
            losses[path] = values
            for kind in [kind for kind in waiting if all(path in losses for path in asked[kind.name].values())]:
                waiting.remove(kind)
                found[kind.name] = _ranked_values(context, kind, asked[kind.name], losses, provenance)
        for kind in waiting:  # every sequence had been measured for another
            found[kind.name] = _ranked_values(context, kind, asked[kind.name], losses, provenance)
    return found


def _losses(
    context: ScoringContext, paths: Sequence[LayerSequence], what: str
) -> Iterator[tuple[LayerSequence, list[float]]]:
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
    tally = _Tally()
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


def gradients_pass(
    context: ScoringContext, kinds: Sequence[GradientsScore], provenance: Provenance
) -> dict[str, Score]:
    """Run one backward per calibration sequence, and average each matrix's score over sequences.

    Raises:
        ScoreError: the model is streamed from disk.
    """
    if context.streamed:
        raise ScoreError(
            "gradients need the whole model in memory", where=", ".join(kind.name for kind in kinds),
            hint="say --no-stream on a larger machine, or choose a score of weights, activations or losses",
        )  # fmt: skip
    require_values(context.draft.structure, context.runner.layers, ", ".join(kind.name for kind in kinds))
    seen: dict[str, list[dict[str, float]]] = {kind.name: [{} for _ in context.keys] for kind in kinds}
    sums: dict[str, list[list[float]]] = {kind.name: [[] for _ in context.keys] for kind in kinds}
    total = len(context.calibration.tokens_BT)
    tokens_BT = torch.cat(list(context.batches))
    for number in sequence_gradients(context.model, tokens_BT, context.job.is_cancelled):
        for layer, module in enumerate(context.runner.layers):
            for kind in kinds:
                row = _row(kind, context, module)
                sums[kind.name][layer].append(sum(row.values()))
                for name, value in row.items():
                    seen[kind.name][layer][name] = seen[kind.name][layer].get(name, 0.0) + value / total
        context.progress(number + 1, total, "gradients", "sequences")
    tallies = {kind.name: _Tally() for kind in kinds}
    for kind in kinds:
        for layer, key in enumerate(context.keys):
            mean = average(sums[kind.name][layer])
            tallies[kind.name].values[layer] = mean
            tallies[kind.name].matrices[key] = seen[kind.name][layer]
            context.scored(kind.name, layer, mean, seen[kind.name][layer])
    return {kind.name: tallies[kind.name].score(kind, context.keys, provenance) for kind in kinds}


def _row(kind: GradientsScore, context: ScoringContext, layer: nn.Module) -> dict[str, float]:
    def weight(name: str, parameter: nn.Parameter) -> torch.Tensor:
        holder = layer.get_submodule(name.rpartition(".")[0])
        return context.with_update(holder, parameter.detach()) if name.endswith(".weight") else parameter.detach()

    with weights_of(layer):
        return {
            name: kind.matrix(weight(name, parameter), parameter.grad)
            for name, parameter in layer.named_parameters()
            if parameter.dim() >= 2 and parameter.grad is not None
        }
