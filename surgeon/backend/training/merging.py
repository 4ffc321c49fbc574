"""Adds trained adapters to the weights below them, once; disk and memory then copy the same result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from surgeon.backend.digests import contents_digest, digest_of
from surgeon.backend.model.tensors import tensor_reader
from surgeon.backend.model.update_rounding import Rounding
from surgeon.backend.trained_adapters import read_update
from surgeon.backend.training.result_store import keep
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import (
    REPORT,
    TENSORS,
    is_learned,
    result_report,
)
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.learning_step import LEARNED, draft_state, result_names
from surgeon.core.recipe.recipe import Step

_VERSION = 1
"""Raised whenever the same inputs would give another result."""


def merge(draft: Draft, step: Step, job: JobContext) -> Step:
    """Merge the adapters of a draft unless that was done before; return the step with the result's address."""
    thawed = {name: tuple(replace(one, frozen=frozenset()) for one in layers) for name, layers in draft.stacks.items()}
    files = FileStamps(*draft.checkpoints)
    state = draft_state(replace(draft, stacks=thawed, frozen=frozenset(), mask=None))
    address = digest_of((_VERSION, step.operation.name, contents_digest(draft.checkpoints), state))
    if not is_learned(address):

        def write(directory: Path) -> None:
            report = _merge(draft, directory)
            files.check()
            (directory / REPORT).write_text(json.dumps({"step": {step.operation.name: {}}, **report}))

        keep(address, write, job)
        job.log(f"{step.operation.name}: {result_report(address)['merged']} matrices")
    for remark in result_report(address).get("remarks", ()):
        job.warn(f"{step.operation.name}: {remark}")
    return msgspec.structs.replace(step, resolved={**(step.resolved or {}), LEARNED: (address,)})


def _merge(draft: Draft, directory: Path) -> dict[str, Any]:
    """Write the merged matrices, each rounded once to its own dtype; return what there is to tell."""
    tensors: dict[str, torch.Tensor] = {}
    moved = kept = 0
    for name, weight, update in _updates(draft):
        tensors[name] = (weight.float() + update).to(weight.dtype).contiguous()
        moved += int(update.count_nonzero())
        kept += int((tensors[name] != weight).sum())
    save_file(tensors, directory / TENSORS)
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in tensors.values()})
    remark = Rounding(moved, kept, ", ".join(dtypes)).remark
    return {"merged": len(tensors), "remarks": [remark] if remark else []}


def _updates(draft: Draft) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield the matrices with trained adapters: name in the result, weight, and what is added to it in float32."""
    plan = compile_plan(draft)
    own = dict(result_names(draft))
    planned = {own[tensor.name]: tensor for tensor in plan.tensors if tensor.name in own}
    transposed = draft.structure.family.transposed
    with tensor_reader() as reader:
        for adapter in plan.adapters:
            name = f"{adapter.name}.weight"
            tensor = planned[name]
            update = read_update(reader, adapter, transposed=adapter.role in transposed)
            if update is not None:
                yield name, reader.evaluate(tensor.source, tensor.dtype, tensor.shape), update.weight
