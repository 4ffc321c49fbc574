"""The model of a draft, ready to be measured, and the base that it can be arranged as meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from surgeon.backend.evaluation.divergence import AsBase
from surgeon.backend.evaluation.streamed import StreamedModel
from surgeon.backend.model.adapters import attached
from surgeon.backend.model.in_memory_executor import edited_model
from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.loading import resident_model
from surgeon.backend.model.streaming import room_for_states
from surgeon.backend.quantised_loading import loaded_in
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import unfrozen
from surgeon.errors import RecipeError


@dataclass(frozen=True)
class LiveModel:
    """The model of a draft; `as_base` makes it the base while it is entered; `streamed` where layers lie on disk."""

    model: nn.Module
    as_base: AsBase
    streamed: StreamedModel | None = None


@contextmanager
def live_model(
    draft: Draft, dtype: torch.dtype | None, device: torch.device, seed: int, job: JobContext, *, stream: bool = False
) -> Iterator[LiveModel]:
    """Yield the model of a draft with what was learned and with its adapters, in evaluation mode.

    Raises:
        RecipeError: something of it has not been learned yet.
    """
    plan = compile_plan(draft)
    if plan.pending:
        raise RecipeError("a learning step before this has not been carried out", hint="run the recipe")
    with ExitStack() as stack:
        model = resident_model(draft.structure, dtype, device, stream=stream, held_in=loaded_in(draft)).model
        edited = stack.enter_context(edited_model(model, unfrozen(draft)))
        if stream:
            layers = layer_list(edited.model, draft.structure.stack(), count=len(draft.layers()))
            memory = room_for_states(device, streamed=True)
            streamed = StreamedModel(edited.model, edited.as_base, layers, memory, job)
            yield LiveModel(edited.model, edited.as_base, streamed)
            return
        if not plan.adapters:
            yield LiveModel(edited.model, edited.as_base)
            return
        adapted, _ = stack.enter_context(attached(edited.model, plan, seed))

        @contextmanager
        def as_base() -> Iterator[nn.Module]:
            with adapted.disable_adapter(), edited.as_base():
                yield adapted

        yield LiveModel(adapted.eval(), as_base)
