"""Blockwise healing: each changed layer learns the base's hidden states, with one layer of each in memory.

Two states of every sequence go through the layers side by side: the base's, and that of the model as it is healed so
far. Where a layer was changed, or those behind it were removed, it is trained on the one to come to the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import get_scheduler

from surgeon.backend.data.examples import Examples, examples_of_step, steps_wanted
from surgeon.backend.hidden_states import HiddenStates
from surgeon.backend.model.in_memory_executor import edited_config
from surgeon.backend.model.input_limits import refuse_unreadable
from surgeon.backend.model.layer_building import LayerShells, build_layer, live_suffix
from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.layer_runner import Arguments, LayerRunner
from surgeon.backend.model.loading import forget_donor, resident_model
from surgeon.backend.model.streaming import fits_in_memory, room_for_states, weights_of
from surgeon.backend.model.tensors import DTYPES
from surgeon.backend.training.training_request import TrainingRequest, TrainingResult
from surgeon.core.plan.layer_moves import Block, blocks_of
from surgeon.core.plan.learned_results import layer_tensor
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.learning_step import layer_suffixes
from surgeon.errors import ArchitectureError, LearningError
from surgeon.objectives.blockwise import Blockwise

_BASE, _HEALED = 0, 1


def heal_blocks(request: TrainingRequest, state: Path) -> TrainingResult:
    """Train every changed layer, one after the other; return their weights, and the distance of each before and after.

    A run that is broken off begins anew: no state is kept.

    Raises:
        LearningError: a distance is not finite.   ArchitectureError: a tensor has another form once it is loaded.
    """
    del state
    draft, device = request.draft, request.device
    objective = request.step.objective.objective  # type: ignore[attr-defined]
    data, _ = request.split(objective)
    stream = not fits_in_memory(draft.structure.checkpoint, torch.float32, device)
    with ExitStack() as stack:
        model = resident_model(draft.structure, torch.float32, device, stream=stream).model
        model.requires_grad_(requires_grad=False)
        states = stack.enter_context(HiddenStates(room_for_states(device, streamed=stream)))
        return _Healing(request, objective, model, data, states).heal()


@dataclass
class _Healing:
    """One run. A batch is one sequence: what is trained on together is put together step by step."""

    request: TrainingRequest
    objective: Blockwise
    model: nn.Module
    data: Examples
    states: HiddenStates
    numbers: list[int] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def heal(self) -> TrainingResult:
        step, job = self.request.step, self.request.job
        steps, notes = steps_wanted(step, self.data), []
        lengths = Counter(len(tokens.tokens) for (tokens,) in self.data.examples)
        length = max(lengths, key=lambda one: (lengths[one], one))
        self.numbers = [at for at, (tokens,) in enumerate(self.data.examples) if len(tokens.tokens) == length]
        if len(self.numbers) < len(self.data.examples):
            notes.append(
                f"{len(self.data.examples) - len(self.numbers)} windows are not {length} tokens long: left out"
            )
        seen = sorted({at for number in range(steps) for at in self._of_step(number)})
        runner, calls = self._recorded(seen)
        draft, stack = self.request.draft, self.request.draft.structure.stack()
        shells = LayerShells(self.model, edited_config(self.model, draft), stack, len(draft.layers()))
        base, blocks = list(runner.layers), blocks_of(draft)
        for done, block in enumerate(blocks):
            job.stop_if_cancelled()
            for number in block.base:
                self._push(runner, base[number], _BASE, seen, [call[number] for call in calls])
            arguments = dict(zip(seen, (call[block.like] for call in calls), strict=True))
            layer = build_layer(draft.structure, stack, block.layer.source, base, shells, block.position)
            if block.changed:
                self._train(runner, layer, block, seen, arguments, steps)
            self._push(runner, layer, _HEALED, seen, [arguments[at] for at in seen])
            job.progress(done + 1, len(blocks), "layers", "healing")
        forget_donor()
        for text in notes:
            job.warn(f"{step.name}: {text}")
        mean = [math.fsum(of_step) / len(of_step) for of_step in zip(*self.losses, strict=True)]
        tokens = steps * step.batch_size * length * len(self.losses)
        report = {"losses": mean, "layers": self.layers, "tokens": tokens, "remarks": notes, "stable": False}
        return TrainingResult(self.tensors, report)

    def _of_step(self, number: int) -> list[int]:
        found = examples_of_step(number, self.request.step.batch_size, len(self.numbers), self.request.seed)
        return [self.numbers[at] for at in found]

    def _recorded(self, seen: Sequence[int]) -> tuple[LayerRunner, list[list[Arguments]]]:
        """Put what enters the first layer in both places, and return how each layer is called, by sequence."""
        base = layer_list(self.model, self.request.draft.structure.stack())
        sequences = [self.data.examples[at][0] for at in seen]
        refuse_unreadable(self.model, sequences, self.request.step.name, "max_length")
        batches = [torch.tensor([one.tokens], device=self.request.device) for one in sequences]
        runner = LayerRunner(self.model, base, batches[0])
        calls = []
        with torch.no_grad():
            for at, tokens_BT in zip(seen, batches, strict=True):
                recorded = runner.record(tokens_BT)
                hidden_BTD = recorded.release()
                self.states.put(_BASE, at, hidden_BTD)
                self.states.put(_HEALED, at, hidden_BTD)
                calls.append(recorded.calls)
        return runner, calls

    @torch.no_grad()
    def _push(
        self, runner: LayerRunner, layer: nn.Module, variant: int, seen: Sequence[int], calls: Sequence[Arguments]
    ) -> None:
        with weights_of(layer):
            for at, call in zip(seen, calls, strict=True):
                self.states.put(variant, at, runner.run(layer, self.states.get(variant, at), call))

    @torch.no_grad()
    def _distance(
        self, runner: LayerRunner, layer: nn.Module, seen: Sequence[int], arguments: dict[int, Arguments]
    ) -> float:
        found = (
            self.objective.distance(
                runner.run(layer, self.states.get(_HEALED, at), arguments[at]), self.states.get(_BASE, at)
            ).item()
            for at in seen
        )
        return math.fsum(found) / len(seen)

    def _train(
        self, runner: LayerRunner, layer: nn.Module, block: Block, seen: Sequence[int],
        arguments: dict[int, Arguments], steps: int,
    ) -> None:  # fmt: skip
        """Train one layer on the healed states before it, to come to the base's."""
        free = dict(self._free(layer, block))
        if not free:
            return
        step, job = self.request.step, self.request.job
        before = self._distance(runner, layer, seen, arguments)
        matrices = [one for one, _ in free.values() if one.dim() > 1]
        others = [one for one, _ in free.values() if one.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": step.weight_decay}, {"params": others, "weight_decay": 0.0}]
        rate = step.learning_rate or step.learning_rates[0]
        optimizer = torch.optim.AdamW([one for one in groups if one["params"]], lr=rate)
        warmup = min(math.ceil(step.warmup_ratio * steps), steps - 1)
        scheduler = get_scheduler(step.scheduler, optimizer, warmup, steps)
        losses = []
        for number in range(steps):
            job.stop_if_cancelled()
            total = 0.0
            for at in (together := self._of_step(number)):
                out_BTD = runner.run(layer, self.states.get(_HEALED, at), arguments[at])
                loss = self.objective.distance(out_BTD, self.states.get(_BASE, at)) / len(together)
                torch.autograd.backward(loss)
                total += loss.item()
            norm = nn.utils.clip_grad_norm_([*matrices, *others], step.max_grad_norm)
            if not math.isfinite(total) or not torch.isfinite(norm):
                raise LearningError(
                    f"the distance of layer {block.layer.key} is {total} at step {number}", where=step.name,
                    hint="take a smaller learning_rate, or more warm-up",
                )  # fmt: skip
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(total)
            job.progress(number + 1, steps, "steps", f"healing layer {block.layer.key}", {"loss": total})
        for parameter, _ in free.values():
            parameter.requires_grad = False
        with torch.no_grad():
            for name, (parameter, dtype) in free.items():
                self.tensors[name] = parameter.detach().to(dtype, copy=True)
                parameter.copy_(self.tensors[name])  # what comes next sees what is stored
        self.losses.append(losses)
        self.layers[block.layer.key] = {"before": before, "after": self._distance(runner, layer, seen, arguments)}

    def _free(self, layer: nn.Module, block: Block) -> Iterator[tuple[str, tuple[nn.Parameter, torch.dtype]]]:
        """Yield by their name in the result the parameters that no freeze holds, with the dtype they are stored in."""
        draft = self.request.draft
        plan, structure, stack = compile_plan(draft), draft.structure, draft.structure.stack()
        stored = {tensor.name: DTYPES.get(tensor.dtype) for tensor in plan.tensors}
        live = dict(layer.named_parameters())
        buffers = dict(layer.named_buffers())
        for suffix in layer_suffixes(draft, block.layer, stack.name):
            name = stack.tensor_name(block.position, suffix)
            dtype = stored[name]
            if name in plan.frozen or dtype is None or not dtype.is_floating_point:
                continue
            own = live_suffix(structure, stack, suffix)
            if own in live:
                live[own].requires_grad = True
                yield layer_tensor(stack.name, block.layer.key, suffix), (live[own], dtype)
            elif own not in buffers:
                raise ArchitectureError(
                    "has another form once it is loaded, so it cannot be trained and stored back", where=name,
                    allowed="freeze it", hint="add a freeze step for its role",
                )  # fmt: skip
