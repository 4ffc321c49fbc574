"""Scores that need the model to run: what each pass gives, put together into scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from surgeon.backend.model.matrices import matrices_of
from surgeon.backend.model.quantised_models import require_values
from surgeon.backend.model.streaming import weights_of
from surgeon.backend.scoring.context import Row, ScoringContext
from surgeon.backend.scoring.layer_passes import InputCovariance, push_layers, sequence_gradients
from surgeon.backend.scoring.tally import Tally
from surgeon.core.plan.layer_layouts import config_of
from surgeon.core.scoring.score import Average, Provenance, Score, average
from surgeon.core.scoring.score_kinds import (
    ActivationsContext,
    ActivationsScore,
    Collector,
    GradientsScore,
    InputsScore,
)
from surgeon.errors import ArchitectureError, ScoreError


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
    tallies = {kind.name: Tally() for kind in kinds}
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


def _retell(context: ScoringContext, tally: Tally, name: str, layer: int, known: Row) -> None:
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
    tallies = {kind.name: Tally() for kind in kinds}
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
    tallies = {kind.name: Tally() for kind in kinds}
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
