"""Checks of an export that need no model in memory: scales, names of layers, files; and bytes where none can be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from surgeon.backend.verification.check_helpers import Check
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import unfrozen
from surgeon.core.structure.quantisation import Quantisation
from surgeon.core.structure.structure import Structure
from surgeon.export.written_checks import (
    differing_bytes,
    files_named,
    missing_files,
    named_layers,
    quantised_count,
    stray_names,
    two_counts,
    unplanned_names,
    unscaled_weights,
)

_OTHER_INPUTS = ("vision_config", "audio_config", "image_config", "speech_config", "video_config", "talker_config")


def file_checks(structure: Structure, draft: Draft | None) -> list[Callable[[], Check]]:
    """Return the checks of what is written beside the tensors' values, where there is anything to check."""
    written = structure.checkpoint
    checks: list[Callable[[], Check]] = []
    if structure.quantisation is not None:
        said = f"no packed weights are known, though {structure.quantisation.where} says that there are"
        checks.append(lambda: _scales(written, draft, said))
    quantised = draft is not None and draft.structure.quantisation is not None
    if quantised or any(True for _ in (*named_layers(structure), *two_counts(structure))):
        checks.append(lambda: _names(structure, draft))
    if any(True for _ in files_named(written)):
        checks.append(lambda: _files(written, draft))
    return checks


def _scales(written: Checkpoint, draft: Draft | None, unknown: str) -> Check:
    count = quantised_count(written)
    if not count:
        return Check("scales", None, unknown)
    return _check(
        "scales", unscaled_weights(written), _of_base(draft, unscaled_weights), f"{count} quantised weights have theirs"
    )


def _names(structure: Structure, draft: Draft | None) -> Check:
    if draft is None:
        wrong = [*two_counts(structure), *stray_names(structure)]
    else:  # what is odd with the base's may stay so
        wrong = [*two_counts(structure), *unplanned_names(structure.checkpoint, compile_plan(unfrozen(draft)))]
    return _check("layer names", wrong, (), "config and files name none that is not there")


def _files(written: Checkpoint, draft: Draft | None) -> Check:
    before = set(_of_base(draft, missing_files))
    found = list(missing_files(written))
    if found and before.issuperset(found):
        return Check("files", True, f"what config files point to is there as far as the base has it: {found[0]}")
    return _check("files", (one for one in found if one not in before), (), "all that config files point to is there")


def _of_base(draft: Draft | None, find: Callable[[Checkpoint], Iterable[str]]) -> Iterable[str]:
    return find(draft.structure.checkpoint) if draft is not None else ()


def _check(name: str, wrong: Iterable[str], of_base: Iterable[str], right: str) -> Check:
    """Return a check of which nothing may be wrong; where the base is wrong too, that is what to repair."""
    found, before = list(wrong), list(of_base)
    if not found:
        return Check(name, True, right)
    if before:
        return Check(name, False, "; ".join(found[:3]), f"the base lacks the same: {before[0]}; repair it first")
    return Check(name, False, "; ".join(found[:3]))


def unloaded_checks(
    quantisation: Quantisation, structure: Structure, draft: Draft | None, left_out: Iterable[str]
) -> list[Callable[[], Check]]:
    """Return the checks of a model that transformers would load without its scales: bytes alone can be compared.

    left_out: the names of the checks that need the model.
    """
    reason = (
        f"the model is not loaded: {quantisation.where} says {quantisation.method}, which transformers does not know"
    )
    return [
        lambda: _bytes(structure.checkpoint, draft),
        *(lambda name=name: Check(name, None, reason) for name in left_out),
    ]


def _bytes(written: Checkpoint, draft: Draft | None) -> Check:
    if draft is None:
        return Check("bytes", None, "there is no base to compare them with")
    plan = compile_plan(unfrozen(draft))
    return _check(
        "bytes", differing_bytes(plan, written), (), f"{plan.tensor_count} tensors are the base's, as planned"
    )


def untried_inputs(config: Mapping[str, Any]) -> Check | None:
    """Return what checks of a model of several parts do not say; None for a model of text alone."""
    parts = [key for key in _OTHER_INPUTS if config.get(key)]
    return Check("other inputs", None, f"only text was given: {', '.join(parts)} took no part") if parts else None
