"""Trained adapters as additions to the weights they are on: what they add, and a live model that computes with it.

PEFT's own wrapping renames modules and parameters, which the passes of scores go by; a forward hook does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgeon.backend.model.tensors import TensorReader, tensor_reader
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import adapter_tensors, result_tensors
from surgeon.core.plan.plan import Adapter, compile_plan
from surgeon.errors import ArchitectureError


@dataclass(frozen=True)
class LowRankUpdate:
    """What a trained adapter adds to its matrix, `sigmoid(gate) * (alpha / rank) * B A`, in float32.

    transposed: whether the matrix is stored as (in, out).
    """

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    transposed: bool

    @property
    def weight(self) -> torch.Tensor:
        """The addition in the shape of the stored matrix."""
        update_OI = self.b_OR @ self.a_RI
        return update_OI.T if self.transposed else update_OI

    def output(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what is added to the outputs of the matrix, (..., in) to (..., out)."""
        return inputs.to(self.a_RI.dtype) @ self.a_RI.T @ self.b_OR.T

    def to(self, device: torch.device) -> LowRankUpdate:
        """Return it on a device."""
        return LowRankUpdate(self.a_RI.to(device), self.b_OR.to(device), self.transposed)


def read_update(reader: TensorReader, adapter: Adapter, *, transposed: bool) -> LowRankUpdate | None:
    """Read what an adapter adds; None where it was not trained: its B is zero."""
    lora = adapter.lora
    stored = result_tensors(lora.address) if lora.address else {}
    names = adapter_tensors(adapter.name)
    if names[1] not in stored:
        return None
    a_RI, b_OR, gate = (reader.read(stored[name]).float() for name in names)
    return LowRankUpdate(a_RI, torch.sigmoid(gate) * (lora.alpha / lora.rank) * b_OR, transposed)


def trained_updates(draft: Draft) -> dict[str, tuple[Adapter, LowRankUpdate]]:
    """Return the adapter and the update of every trained one, by the adapter's own name."""
    transposed = draft.structure.family.transposed
    found = {}
    with tensor_reader() as reader:
        for adapter in compile_plan(draft).adapters if draft.adapted else ():
            update = read_update(reader, adapter, transposed=adapter.role in transposed)
            if update is not None:
                found[adapter.name] = (adapter, update)
    return found


Updates = Mapping[nn.Module, LowRankUpdate]
"""By the live module that the adapter is on."""


@contextmanager
def trained_adapters_on(model: nn.Module, draft: Draft, device: torch.device) -> Iterator[Updates]:
    """Yield what the trained adapters of a draft add, by module; until leaving, the modules compute with it.

    Raises:
        ArchitectureError: the loaded model has no module of an adapter's name.
    """
    modules = dict(model.named_modules())
    found: dict[nn.Module, LowRankUpdate] = {}
    with ExitStack() as stack:
        for adapter, update in trained_updates(draft).values():
            if adapter.module not in modules:
                raise ArchitectureError("the loaded model has no module of that name", where=adapter.module)
            module = modules[adapter.module]
            found[module] = update.to(device)
            stack.enter_context(module.register_forward_hook(_adding(found[module])))
        yield found


def _adding(update: LowRankUpdate) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], torch.Tensor]:
    def add(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return (output + update.output(args[0])).to(output.dtype)

    return add
