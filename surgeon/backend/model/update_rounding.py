"""How much of what was trained in float32 survives being rounded to the checkpoint's dtype.

A weight falls back to what it was where it moved by less than half a unit in the last place: with bfloat16, whose unit
is 1/128 of a weight's binary order, a small learning rate can leave next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from surgeon.backend.model.tensors import DTYPES, tensor_reader
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.learning_step import result_names

_WORTH_TELLING = 0.5


@dataclass(frozen=True)
class Rounding:
    """Weights that moved in float32, and those of them that still differ once they are rounded."""

    moved: int
    kept: int
    dtype: str

    @property
    def remark(self) -> str:
        """Say so where most of the training was lost."""
        if not self.moved or self.kept >= _WORTH_TELLING * self.moved:
            return ""
        lost = 1 - self.kept / self.moved
        return (
            f"{lost:.0%} of the {self.moved:,} weights that moved fell back when they were rounded to {self.dtype}: "
            "take a larger learning_rate, more steps, or a base in float32"
        )


def rounding_of(draft: Draft, trained: Mapping[str, torch.Tensor]) -> Rounding:
    """Compare trained weights, float32 by their name in the result, with those of the draft they were trained from."""
    own = dict(result_names(draft))
    moved = kept = 0
    dtypes = set()
    with tensor_reader() as reader:
        for tensor in compile_plan(draft).tensors:
            after = trained.get(own[tensor.name])
            if after is None or DTYPES[tensor.dtype].itemsize >= after.dtype.itemsize:
                continue
            before = reader.evaluate(tensor.source, tensor.dtype, tensor.shape)
            after = after.detach().cpu()
            moved += int((after != before.to(after.dtype)).sum())
            kept += int((after.to(before.dtype) != before).sum())
            dtypes.add(str(before.dtype).removeprefix("torch."))
    return Rounding(moved, kept, ", ".join(sorted(dtypes)))
