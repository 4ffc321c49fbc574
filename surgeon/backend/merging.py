"""Adds trained adapters to the weights below them, once; disk and memory then copy the same result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import torch
from safetensors.torch import save_file

from surgeon.backend.score_cache import content_digest
from surgeon.backend.tensors import TensorReader, tensor_reader
from surgeon.backend.training_data import digest_of
from surgeon.core.draft import Draft
from surgeon.core.jobs import Emit
from surgeon.core.learned import REPORT, TENSORS, adapter_tensors, is_learned, result_directory, result_tensors
from surgeon.core.learning_step import LEARNED, draft_state, result_names
from surgeon.core.plan import Adapter, compile_plan
from surgeon.core.recipe import Step
from surgeon.export.publish import published

_VERSION = 1
"""Raised whenever the same inputs would give another result."""


def merge(draft: Draft, step: Step, emit: Emit) -> Step:
    """Merge the adapters of a draft unless that was done before; return the step with the result's address."""
    thawed = {name: tuple(replace(one, frozen=frozenset()) for one in layers) for name, layers in draft.stacks.items()}
    state = draft_state(replace(draft, stacks=thawed, frozen=frozenset(), mask=None))
    address = digest_of((_VERSION, step.operation.name, content_digest(draft.structure.checkpoint), state))
    if not is_learned(address):
        with published(result_directory(address)) as directory:
            tensors = dict(_merged(draft))
            save_file(tensors, directory / TENSORS)
            (directory / REPORT).write_text(json.dumps({"step": {step.operation.name: {}}, "merged": len(tensors)}))
        emit("log", {"level": "info", "text": f"{step.operation.name}: {len(tensors)} matrices"})
    return msgspec.structs.replace(step, resolved={**(step.resolved or {}), LEARNED: (address,)})


def _merged(draft: Draft) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the matrices with trained adapters by their name in the result, rounded once to their own dtype."""
    plan = compile_plan(draft)
    own = dict(result_names(draft))
    planned = {own[tensor.name]: tensor for tensor in plan.tensors if tensor.name in own}
    transposed = draft.structure.family.transposed
    with tensor_reader() as reader:
        for adapter in plan.adapters:
            name = f"{adapter.name}.weight"
            tensor = planned[name]
            update = _update(reader, adapter)
            if update is not None:
                weight = reader.evaluate(tensor.source, tensor.dtype, tensor.shape)
                update = update.T if adapter.role in transposed else update
                yield name, (weight.float() + update).to(weight.dtype).contiguous()


def _update(reader: TensorReader, adapter: Adapter) -> torch.Tensor | None:
    """Return what an adapter adds, (out, in), float32; None where it was not trained: its B is zero."""
    lora = adapter.lora
    stored = result_tensors(lora.address) if lora.address else {}
    names = adapter_tensors(adapter.name)
    if names[1] not in stored:
        return None
    a_RI, b_OR, gate = (reader.read(stored[name]).float() for name in names)
    return torch.sigmoid(gate) * (lora.alpha / lora.rank) * (b_OR @ a_RI)
