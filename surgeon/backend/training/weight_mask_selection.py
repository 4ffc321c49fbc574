"""Masks over single weights (ALLO, arXiv:2406.12606): chosen by how far a trial run moves them, stored as bits.

A mask is a result like any other: for each tensor, by its name in a result, its bits packed in U8. Choosing reads the
importances three times and sorts nothing: a histogram over the upper half of each float's bits, one over the lower half
within the bin that the threshold lies in, and the masks themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.training.finetuning import data_warnings, plain_report, training_run
from surgeon.backend.training.trainable_model import open_trainable
from surgeon.backend.training.trainer import train
from surgeon.backend.training.training_request import TrainingRequest, TrainingResult
from surgeon.backend.training.training_run import TrainingReport
from surgeon.backend.training.weight_mask_bits import pack, unpack
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import outside_kind
from surgeon.core.recipe.learning_step import objective_of
from surgeon.errors import LearningError
from surgeon.operations.mask_weights import MaskWeights

_CHUNK = 1 << 23
"""Weights looked at at once; a multiple of 8."""
_LOW_BITS = 15
_HIGHEST = 0x7FFFFFFF

Keys = Callable[[], Iterable[torch.Tensor]]
"""Gives the keys of all weights, int32 and not negative, in pieces; the same each time it is called."""


def mask_weights(order: TrainingRequest, state: Path) -> TrainingResult:
    """Train a throw-away copy and keep the weights that moved; the result holds their bits.

    Raises:
        LearningError, DataError: as training does.
    """
    step = order.step
    assert isinstance(step, MaskWeights)
    moved, report = _without_trial(order) if step.order == "random" else _trial(order, step, state)
    chosen = {name: one for name, one in moved.items() if not _is_excluded(name, step)}
    if not chosen:
        raise LearningError("no weights are left to choose from", where=step.name, hint="exclude less, or freeze less")
    total = sum(one.numel() for one in chosen.values())
    wanted = max(1, round(step.keep * total))

    def keys() -> Iterator[torch.Tensor]:
        for name, importance in chosen.items():
            yield from _keys_of(name, importance, step.order, order.seed)

    cut = threshold_of(keys, wanted)
    bits = dict(_masks(chosen, cut, step.order, order.seed))
    figures = _figures(order.draft, chosen, bits, wanted, total)
    text = f"{step.name}: {wanted:,} of {total:,} weights may change; the mask takes {-(-total // 8) / 1e6:.1f} MB"
    order.job.log(text)
    if figures["unmoved"]:
        text = f"{step.name}: {figures['unmoved']:,} of them did not move in the trial run: their position decided"
        order.job.warn(text)
    return TrainingResult(bits, {**report, "mask": figures})


def _trial(order: TrainingRequest, step: MaskWeights, state: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return |theta' - theta| by name, float32, and what the trial run came to.

    theta is loaded again afterwards: by then the gradients and moments of the run are gone, so it takes no more
    memory than the run did.
    """
    objective = objective_of(step)
    whole = replace(order, draft=replace(order.draft, mask=None))
    data, held_out = order.split(objective)
    notes = data_warnings(order, objective, data)
    with open_trainable(whole, taught=objective.teacher) as trainable:
        run = training_run(order, trainable, data, held_out, state)
        report = {**plain_report(train(run)), "remarks": notes}
        moved = {name: parameter.detach() for name, parameter in trainable.parameters.items()}
    del trainable, run
    with open_trainable(replace(whole, job=_silent(whole.job))) as trainable:
        for name, parameter in trainable.parameters.items():
            moved[name].sub_(parameter.detach()).abs_()
    return moved, report


def _without_trial(order: TrainingRequest) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return equal importances by name: nothing has to be trained where chance decides."""
    with open_trainable(replace(order, draft=replace(order.draft, mask=None))) as trainable:
        equal = {name: torch.ones_like(one) for name, one in trainable.parameters.items()}
    return equal, plain_report(TrainingReport())


def _silent(job: JobContext) -> JobContext:
    """Return a context that tells nobody: the memory has been told once."""
    return replace(job, emit=lambda event: None)


def _is_excluded(name: str, step: MaskWeights) -> bool:
    room, _, own = name.partition("/")
    return room == "outside" and outside_kind(own) in step.exclude


def _keys_of(name: str, importance: torch.Tensor, order: str, seed: int) -> Iterator[torch.Tensor]:
    """Yield keys, larger ones to be kept first. The bits of floats that are not negative sort as the floats do."""
    if order == "random":
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    for part in torch.split(importance.flatten(), _CHUNK):
        if order == "random":
            drawn = torch.randint(_HIGHEST, part.shape, generator=generator, dtype=torch.int32)
            yield drawn.to(part.device)
        else:
            bits = part.contiguous().view(torch.int32)
            yield bits if order == "highest" else _HIGHEST - bits


@dataclass(frozen=True)
class Threshold:
    """What is kept: every weight with a key above `key`, and of those with that key the first `ties`."""

    key: int
    ties: int


def threshold_of(keys: Keys, wanted: int) -> Threshold:
    """Return the cut that keeps exactly `wanted` weights: those with the highest keys, the first of equal ones."""
    upper = _histogram((part >> _LOW_BITS for part in keys()), 31 - _LOW_BITS)
    high, above = _bin_of(upper, wanted)
    within = (part[(part >> _LOW_BITS) == high] & ((1 << _LOW_BITS) - 1) for part in keys())
    low, above_within = _bin_of(_histogram(within, _LOW_BITS), wanted - above)
    return Threshold((high << _LOW_BITS) | low, wanted - above - above_within)


def _histogram(parts: Iterable[torch.Tensor], bits: int) -> torch.Tensor:
    counts = torch.zeros(1 << bits, dtype=torch.int64)
    for part in parts:
        counts += torch.bincount(part, minlength=1 << bits).cpu()
    return counts


def _bin_of(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """Return the bin in which the `wanted`-th from above lies, and how many lie above that bin."""
    from_above = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(from_above, wanted))
    return len(counts) - 1 - at, int(from_above[at] - counts.flip(0)[at])


def _masks(
    importances: Mapping[str, torch.Tensor], cut: Threshold, order: str, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    ties = cut.ties
    for name, importance in importances.items():
        packed = []
        for key in _keys_of(name, importance, order, seed):
            kept, equal = key > cut.key, key == cut.key
            count = int(equal.sum())
            if 0 < ties < count:
                equal &= equal.cumsum(0) <= ties
            if ties > 0:
                kept |= equal
            ties -= min(ties, count)
            packed.append(pack(kept))
        yield name, torch.cat(packed).cpu()


def _figures(
    draft: Draft, importances: Mapping[str, torch.Tensor], bits: Mapping[str, torch.Tensor], wanted: int, total: int
) -> dict[str, Any]:
    """Return how many weights are kept, how many of these never moved, and the share kept in each role."""
    kept: dict[str, int] = {}
    there: dict[str, int] = {}
    unmoved = 0
    for name, importance in importances.items():
        mask = unpack(bits[name], importance.shape).to(importance.device)
        role = _role(draft, name)
        kept[role] = kept.get(role, 0) + int(mask.sum())
        there[role] = there.get(role, 0) + mask.numel()
        unmoved += int((mask & (importance == 0)).sum())
    shares = {role: kept[role] / count for role, count in sorted(there.items())}
    return {"kept": wanted, "weights": total, "density": wanted / total, "unmoved": unmoved, "by_role": shares}


def _role(draft: Draft, name: str) -> str:
    room, _, own = name.partition("/")
    return outside_kind(own) if room == "outside" else draft.structure.role(own.partition("/")[2])
