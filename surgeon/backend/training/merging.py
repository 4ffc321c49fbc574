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
from surgeon.backend.model.tensors import TensorReader, tensor_reader
from surgeon.backend.model.update_rounding import Rounding
from surgeon.backend.training.result_store import keep
from surgeon.core.checkpoint.file_stamps import FileStamps
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import (
    REPORT,
    TENSORS,
    adapter_tensors,
    is_learned,
    result_report,
    result_tensors,
)
from surgeon.core.plan.plan import Adapter, compile_plan
from surgeon.core.recipe.learning_step import LEARNED, draft_state, result_names
from surgeon.core.recipe.recipe import Step

_VERSION = 1
"""Raised whenever the same inputs would give another result."""


Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Gate times alpha / rank, B (outputs, rank) and A (rank, inputs), float32: their product is added to the weight."""


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
    transposed = draft.structure.family.transposed
    with tensor_reader() as reader:
        for adapter, weight, (scale, b_OR, a_RI) in adapted_weights(reader, draft):
            update = scale * (b_OR @ a_RI)
            turned = adapter.role in transposed
            yield f"{adapter.name}.weight", weight.T if turned else weight, update.T if turned else update


def adapter_factors(reader: TensorReader, adapter: Adapter) -> Factors | None:
    """Return what an adapter's update is the product of; None where it was not trained: its B is zero."""
    lora = adapter.lora
    stored = result_tensors(lora.address) if lora.address else {}
    names = adapter_tensors(adapter.name)
    if names[1] not in stored:
        return None
    a_RI, b_OR, gate = (reader.read(stored[name]).float() for name in names)
    return torch.sigmoid(gate) * (lora.alpha / lora.rank), b_OR, a_RI


def adapted_weights(reader: TensorReader, draft: Draft) -> Iterator[tuple[Adapter, torch.Tensor, Factors]]:
    """Yield the trained adapters of a draft, the weight that each is on (outputs, inputs), and its factors."""
    plan = compile_plan(draft)
    own = dict(result_names(draft))
    planned = {own[tensor.name]: tensor for tensor in plan.tensors if tensor.name in own}
    for adapter in plan.adapters:
        factors = adapter_factors(reader, adapter)
        if factors is not None:
            tensor = planned[f"{adapter.name}.weight"]
            weight = reader.evaluate(tensor.source, tensor.dtype, tensor.shape)
            yield adapter, weight.T if adapter.role in draft.structure.family.transposed else weight, factors
