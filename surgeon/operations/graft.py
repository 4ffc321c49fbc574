"""Inserts layers of another model."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec

from surgeon.core.checkpoint.base_path import locate_base
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.donors.donor import Donor
from surgeon.core.donors.reading import read_donor
from surgeon.core.plan.draft import Draft, Grafted, Layer
from surgeon.core.recipe.operation import Chosen, Operation
from surgeon.core.structure.structure import Stack
from surgeon.errors import ArchitectureError, RecipeError


class Graft(Operation, frozen=True, kw_only=True):
    """Insert layers of another model of the same kind, in their order there.

    They have to be built and configured as layers of the base are: what differs is named. Embedding, norm and head
    stay the base's. `fingerprint` is the other model's; a run writes it down, and a replay compares it.
    """

    name = "graft"
    key = "I"
    summary = "insert layers of another model"
    paper = "Frankenmerges, as mergekit's passthrough makes them: arXiv:2403.13257, section 3"

    from_: Annotated[str, msgspec.Meta(description="the other model: a directory, a hub id")] = msgspec.field(
        name="from"
    )
    layers: Annotated[
        tuple[int, ...] | str, msgspec.Meta(description="which of its layers, in which order: 4-9, or 4,6,5")
    ]
    after: Annotated[int, msgspec.Meta(ge=-1, description="behind which layer of this model; -1: before the first")]
    fingerprint: Annotated[str | None, msgspec.Meta(description="of the other model; written by a run")] = None

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Insert the layers."""
        del chosen
        stack, before = draft.structure.stack(self.stack), draft.layers(self.stack)
        if self.after >= len(before):
            raise RecipeError(f"is {self.after}", where="after", allowed=f"-1 to {len(before) - 1}")
        checkpoint = self._checkpoint(draft.root)
        donor = stack.donors.get(checkpoint.fingerprint) or read_donor(draft.structure, stack, checkpoint)
        layers = list(before)
        draft = replace(draft, structure=replace(draft.structure, stacks={
            **draft.structure.stacks, stack.name: _with_donor(stack, donor)
        }))  # fmt: skip
        for at, index in enumerate(self._positions(len(donor.layers))):
            _refuse_unlike(stack, donor, index)
            parent = before[max(self.after, 0)]
            key = draft.new_key(parent, self.stack)
            layers.insert(
                self.after + 1 + at, Layer(key, Grafted(checkpoint.fingerprint, index), None, donor.settings[index])
            )
            draft = draft.with_layers(tuple(layers), self.stack)
        return draft

    def pinned(self, root: Path) -> Graft:
        """Return the step with the other model's fingerprint."""
        if self.fingerprint is not None:
            return self
        return msgspec.structs.replace(self, fingerprint=self._checkpoint(root).fingerprint)

    def _checkpoint(self, root: Path) -> Checkpoint:
        path = locate_base(self.from_, root)
        checkpoint = _opened(path, _written(path))
        if self.fingerprint not in (None, checkpoint.fingerprint):
            raise RecipeError(
                f"is {self.fingerprint}, but {path} has {checkpoint.fingerprint}", where="fingerprint",
                hint="name the right model, or remove the fingerprint to use this one",
            )  # fmt: skip
        return checkpoint

    def _positions(self, count: int) -> tuple[int, ...]:
        """Return the layers of the other model.

        Raises:
            RecipeError: they are no numbers, or it does not have them.
        """
        found = _parsed(self.layers) if isinstance(self.layers, str) else self.layers
        stray = [index for index in found if not 0 <= index < count]
        if stray or not found:
            what = f"{stray[0]} is out of range" if stray else "chooses no layer"
            raise RecipeError(what, where="layers", allowed=f"0-{count - 1}: layers of {self.from_}")
        return found


def _parsed(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise RecipeError(f"{part.strip()!r} is no layer", where="layers", allowed="numbers and spans: 4-9,12")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _with_donor(stack: Stack, donor: Donor) -> Stack:
    return replace(stack, donors={**stack.donors, donor.checkpoint.fingerprint: donor})


def _refuse_unlike(stack: Stack, donor: Donor, index: int) -> None:
    """Refuse a layer that no layer of the base is built and configured like."""
    if donor.twins[index] >= 0:
        return
    setting = donor.settings[index]
    field = next((key for key in setting if all(own[key] != setting[key] for own in stack.settings)), None)
    said = f"says {setting[field]} of" if field else "and the tensors together say otherwise of"
    raise ArchitectureError(
        f"{said} layer {index} of {donor.checkpoint.path}, and of no layer of the base",
        where=f"config field {field or ', '.join(setting)}",
        allowed="layers that are built and configured as one of the base's", hint="choose other layers",
    )  # fmt: skip


def _written(path: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
    return tuple((file.name, (status := file.stat()).st_size, status.st_mtime_ns) for file in files)


@lru_cache(maxsize=4)
def _opened(path: Path, written: tuple[tuple[str, int, int], ...]) -> Checkpoint:
    """Open a checkpoint once for as long as its files are as they were; a screen folds a recipe at every key."""
    del written
    return open_checkpoint(path)
