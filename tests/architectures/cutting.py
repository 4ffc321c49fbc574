"""Cuts of every kind on one tiny checkpoint, compared with the masked base; see `masking`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.selection.part_selection import part_counts
from surgeon.errors import SurgeonError, VerifyError
from tests.architectures import masking
from tests.architectures.examining import Outcome, Patient, Steps, cache_agrees, load
from tests.architectures.reference import logits_of
from tests.jobs import perform

TOLERANCE = 1e-5
"""Of the largest logit: with fewer terms, sums are taken in another order. What is only silenced is bit for bit."""


@dataclass(frozen=True)
class Cut:
    """Steps of a recipe, and the mask on the base that they must come to."""

    name: str
    steps: Steps
    mask: Callable[[], AbstractContextManager[None]]
    exact: bool = False


def cuts(patient: Patient) -> list[Cut]:
    """Return what is tried on a model."""
    layers, middle = patient.modules, patient.count // 2
    experts = _alternating(patient, "experts", ((1,), (2,)))
    neurons = _alternating(patient, "neurons", ((0, 1, 2, 9, 40, 41, 42, 47), (3, 8, 9, 10, 11, 20, 30, 46)))
    heads = _alternating(patient, "heads", ((1,), (0,)))
    found = [
        Cut(
            "prune experts",
            _steps("prune_experts", "experts", experts),
            partial(masking.without_experts, layers, experts),
        ),
        Cut("narrow neurons", _steps("narrow", "neurons", neurons), partial(masking.without_neurons, layers, neurons)),
        Cut("narrow heads", _steps("narrow", "heads", heads), partial(masking.without_heads, layers, heads)),
    ]
    return [
        *found,
        *(
            Cut(
                f"silence {sublayer}",
                [{"silence": {"layers": [middle], "sublayer": sublayer}}],
                partial(masking.without_sublayer, layers, middle, sublayer),
                exact=True,
            )
            for sublayer in ("attention", "mlp")
        ),
    ]


def _alternating(
    patient: Patient, kind: Any, numbers: tuple[tuple[int, ...], tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    """Return what goes of each layer that has any: not the same in neighbours."""
    structure = read_structure(open_checkpoint(patient.directory))
    try:
        having = part_counts(draft_of(structure), None, kind)
    except SurgeonError:
        having = dict.fromkeys(range(patient.count), 0)
    return {position: numbers[rank % 2] for rank, position in enumerate(having)}


def _steps(operation: str, field: str, gone: Mapping[int, tuple[int, ...]]) -> Steps:
    spots = [f"{position}.{','.join(map(str, numbers))}" for position, numbers in gone.items()]
    return [{operation: {field: spots or "1"}}]


def try_cut(patient: Patient, cut: Cut, out: Path) -> Outcome:
    """Cut, export, compare the two executors, reload with plain transformers, and compare with the masked base."""
    shutil.rmtree(out, ignore_errors=True)
    recipe = {"version": 1, "base": {"model": str(patient.directory)}, "steps": cut.steps}
    try:
        perform("run", {"recipe": recipe, "out": str(out), "verify": True}, lambda *_: None, lambda: False)
    except VerifyError as error:
        return Outcome("wrong", f"{error.where.rpartition('/')[2]}: {error.what}")
    except SurgeonError as error:
        kind = "refused" if type(error).__name__ in ("ArchitectureError", "SelectionError") else "error"
        return Outcome(kind, f"{error.where}: {error.what}")
    try:
        return _compare(patient, cut, out)
    except masking.NoMask as reason:
        return Outcome("error", str(reason))
    except Exception as error:  # whatever the reloaded model does wrong is a finding
        return Outcome("wrong", f"reloaded: {type(error).__name__}: {str(error).strip().splitlines()[0]}")


def _off_in_double(patient: Patient, cut: Cut, model: Any) -> float:
    """Return how far the logits are from the masked base's, of the largest, in float64: recurrences amplify rounding.

    Experts go one by one meanwhile: grouped products know no float64.
    """
    base: Any = patient.base
    grouped = [one.config._experts_implementation for one in (base, model)]
    try:
        for one in (base, model):
            one.double().set_experts_implementation("eager")
        with cut.mask():
            expected = logits_of(base, patient.tokens_BT)
        found = logits_of(model, patient.tokens_BT)
    finally:
        for one, before in zip((base, model), grouped, strict=True):
            one.float().set_experts_implementation(before)
    return (found - expected).abs().max().item() / expected.abs().max().item()


def _compare(patient: Patient, cut: Cut, out: Path) -> Outcome:
    model, report = load(out, patient.auto)
    if report - patient.report:
        return Outcome("wrong", "; ".join(sorted(report - patient.report)[:3]))
    with cut.mask():
        expected = logits_of(patient.base, patient.tokens_BT)
    found, base = logits_of(model, patient.tokens_BT), logits_of(patient.base, patient.tokens_BT)
    scale = expected.abs().max().item()
    off = (found - expected).abs().max().item() / scale
    if not torch.isfinite(expected).all():
        return Outcome("error", "the reference is not finite")
    if not cut.exact and not off <= TOLERANCE:
        off = _off_in_double(patient, cut, model)
    if (cut.exact and off) or not off <= TOLERANCE:
        return Outcome("wrong", f"logits differ by {off:.2g} of the largest")
    if (expected - base).abs().max().item() / scale < 100 * TOLERANCE:
        return Outcome("error", "the cut changed nothing: this model cannot tell right from wrong")
    if patient.cache_is_sound and not cache_agrees(model, 0):
        return Outcome("wrong", "generation with a cache differs from that without")
    return Outcome("exact")
