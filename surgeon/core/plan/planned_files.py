"""What becomes of the files beside the weights: copied as they are, rewritten where they name layers, or left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import msgspec

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.side_files import MODULES, documents, module_folders
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_moves import moves_of
from surgeon.core.structure.config_layer_names import LayerNames
from surgeon.core.structure.layer_runs import Moves
from surgeon.core.structure.quantisation import is_quantisation_file
from surgeon.errors import ArchitectureError

RECIPE = "recipe.yaml"
PROOF = "surgeon_proof.json"
TRAINABLE = "trainable_parameters.json"
RESULTS = "surgeon_results.json"
RECORDS = frozenset({RECIPE, PROOF, TRAINABLE, RESULTS, "README.md"})
"""What is written about each export anew: those of the base do not travel."""
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "depth")


class PlannedFiles(msgspec.Struct, frozen=True):
    """The files beside the weights of the result.

    copied: those that stay as they are.   rewritten: JSON, by file.   left_out: why, by file.
    """

    copied: tuple[str, ...] = ()
    rewritten: Mapping[str, Any] = {}
    left_out: Mapping[str, str] = {}


def planned_files(draft: Draft) -> PlannedFiles:
    """Return what becomes of the base's files.

    Raises:
        ArchitectureError: one says how weights are quantised, and cannot say it of the edited model.
    """
    checkpoint = draft.structure.checkpoint
    names = tuple(name for name in checkpoint.side_files if name not in RECORDS)
    moves = moves_of(draft)
    if not draft.moved:
        return PlannedFiles(names)
    rewritten: dict[str, Any] = {}
    left_out = dict(_elsewhere(checkpoint))
    for name in documents(names):
        before = checkpoint.document(name)
        try:
            after = _after(name, before, draft, moves)
        except ArchitectureError as error:
            if is_quantisation_file(name):
                raise
            left_out[name] = error.what
            continue
        if after != before:
            rewritten[name] = after
    changed = rewritten.keys() | left_out.keys()
    return PlannedFiles(tuple(name for name in names if name not in changed), rewritten, left_out)


def _after(name: str, before: Any, draft: Draft, moves: Mapping[str, Moves]) -> Any:
    counts = {one.count for one in moves.values() if one.moved}
    told = next(_stated(before, counts), None)
    if told is not None:
        raise ArchitectureError(
            f"states {told[0]}: {told[1]}, as the base has, and is of a form of the model that is not written",
            where=name,
            hint="leave the file out of a copy of the base",
        )
    return LayerNames(name, draft.structure.runs).renamed(before, moves)


def _stated(value: Any, counts: Set[int]) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key in _COUNTS and isinstance(part, int) and part in counts:
                yield key, part
            yield from _stated(part, counts)
    elif isinstance(value, list):
        for part in value:
            yield from _stated(part, counts)


def _elsewhere(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield modules.json and its folders where it takes the transformer from one of them: that one is not edited."""
    folders = module_folders(checkpoint.path) if MODULES in checkpoint.side_files else []
    transformers = [folder for folder, kind in folders if kind.rpartition(".")[2] == "Transformer"]
    if not transformers:
        return
    reason = f"{MODULES} takes the transformer from {transformers[0]}, which is another copy and is not edited"
    yield MODULES, reason
    inside = tuple(f"{folder}/" for folder, _ in folders)
    yield from ((name, reason) for name in checkpoint.side_files if name.startswith(inside))
