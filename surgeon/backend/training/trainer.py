"""The training loop: optimiser steps on `accelerate`, resumable to the bit, one objective.

Everything a step needs follows from the seed and its number, so a run that was killed and goes on from its last saved
state ends with the same weights as one that was not (on a CPU, or with deterministic kernels).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from surgeon.backend.data.examples import Examples, collate, examples_of_step
from surgeon.backend.distributed import all_gather, broadcast
from surgeon.backend.micro_batches import MicroBatches, T, add_weighted, summed
from surgeon.backend.model.dropout import without_dropout
from surgeon.backend.model.input_limits import refuse_unreadable
from surgeon.backend.model.losses import label_log_probs
from surgeon.backend.training.accelerator import training_accelerator
from surgeon.backend.training.resume_state import load_state, save_state
from surgeon.backend.training.training_run import (
    BatchOutputs,
    TrainingReport,
    TrainingRun,
    is_stable,
    logits_of,
    parameter_groups,
)
from surgeon.errors import Cancelled, LearningError


def train(training: TrainingRun) -> TrainingReport:
    """Train, and return what came of it. The parameters hold the result.

    Raises:
        LearningError: the loss is not finite.   DataError: an example is longer than the model can read.
        Cancelled: between two steps; the state is saved.
    """
    for data in filter(None, (training.data, training.held_out)):
        sequences = (one for example in data.examples for one in example)
        refuse_unreadable(training.model, sequences, training.step.name, "max_length")
    steady = without_dropout(training.model) if training.objective.reference else nullcontext()
    with training_accelerator(training.step, training.device, training.precision) as accelerator, steady:
        return _Trainer(training, accelerator).train()


class _Trainer:
    """One run. Of several processes each takes every n-th example of a batch; gradients are averaged."""

    def __init__(self, training: TrainingRun, accelerator: Accelerator) -> None:
        self.training, self.accelerator = training, accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.report = TrainingReport()
        # Processes wait for each other in the middle of a step: none can begin it again alone.
        self.micro = MicroBatches(self._tell_of_memory, may_halve=self.count == 1)
        # Fused: one pass over each weight, and as fast where moments are 0, as they are outside a weight mask.
        optimizer = torch.optim.AdamW(parameter_groups(training), lr=training.learning_rate, fused=True)
        # The first step of a warm-up has a learning rate of 0: the last step has none to wait for.
        warmup = min(math.ceil(training.step.warmup_ratio * training.steps), training.steps - 1)
        self.scheduler = get_scheduler(training.step.scheduler, optimizer, warmup, training.steps)
        # Whatever is measured is measured by the prepared model, in the precision that is trained in.
        # What is frozen is read from the same files by every process: nothing has to be sent before the first step.
        frozen = [name for name, one in training.model.named_parameters() if not one.requires_grad]
        keep_apart: Any = DistributedDataParallel  # of which torch has no types
        keep_apart._set_params_and_buffers_to_ignore_for_model(training.model, frozen)
        self.model, self.optimizer = accelerator.prepare(training.model, optimizer)
        self.reference = self._references()
        self.done = self._resume()
        if training.held_out is not None and not self.done:
            self.report.before = self._evaluate()

    def train(self) -> TrainingReport:
        try:
            self._train_to_the_end()
        except Cancelled:
            self._save()
            raise
        return self.report

    def _train_to_the_end(self) -> None:
        training, watched = self.training, self.training.held_out is not None
        while not self._is_over():
            self._stop_if_asked()
            self._look_if_due()
            self._step()
            last = self._is_over()
            if (self.done % training.step.save_steps == 0 and not last) or (last and watched):
                self._save()
        if watched:
            self.report.after = self._evaluate()
            self._tell({"loss": self.report.losses[-1]}, self.report.tokens / max(self.report.seconds, 1e-9))

    def _look_if_due(self) -> None:
        """Look at the held-out loss before the next step, so that a run stopped meanwhile looks when it goes on."""
        every, seen = self.training.step.eval_steps, self.report.held_out
        due = self.training.held_out is not None and self.done and every and self.done % every == 0
        if due and self.done not in dict(seen):
            seen.append((self.done, self._evaluate()))

    def _is_over(self) -> bool:
        return self.done >= self.training.steps or is_stable(self.report.losses, self.training.epsilon)

    def _stop_if_asked(self) -> None:
        if broadcast(self.training.job.is_cancelled()):
            raise Cancelled

    def _step(self) -> None:
        training, start = self.training, time.perf_counter()
        numbers = examples_of_step(self.done, training.step.batch_size, len(training.data.examples), training.seed)
        mine = numbers[self.index :: self.count]
        training.model.train()
        # A process without a share goes along, with a weight of zero: the others wait for its gradients.
        share = mine or numbers[:1]
        size = math.ceil(len(share) / training.step.gradient_accumulation_steps)
        totals = self.micro.run(
            share, size, lambda parts: self._backward(parts, counts=bool(mine)),
            lambda: self.optimizer.zero_grad(set_to_none=True),
        )  # fmt: skip
        read = sum(len(one.tokens) for number in mine for one in training.data.examples[number])
        totals = summed(all_gather({**totals, _TOKENS: read}))
        self._update(totals["loss"])
        self.done += 1
        seconds, tokens = time.perf_counter() - start, int(totals.pop(_TOKENS))
        self.report.losses.append(totals["loss"])
        self.report.tokens += tokens
        self.report.seconds += seconds
        self._tell(totals, tokens / seconds)

    def _backward(self, parts: Sequence[Sequence[int]], *, counts: bool) -> dict[str, float]:
        """Add up the gradients of the parts of a batch; return the means of the loss and of the figures over it."""
        training = self.training
        torch.manual_seed(((training.seed * 1_000_003 + self.done) * self.count + self.index) % _SEEDS)
        totals: dict[str, float] = {}
        views = [self._view(self.model, training.data, part) for part in parts]
        weights = [training.objective.weight(view) if counts else 0.0 for view in views]
        whole = sum(all_gather(sum(weights))) or 1.0
        for weight in weights:
            view, share = views.pop(0), weight / whole  # popped: a view keeps its logits
            with self.accelerator.no_sync(self.model) if views else nullcontext():
                value = training.objective.loss(view)
                self.accelerator.backward(value * (share * self.count))
            add_weighted(totals, {"loss": value.item(), **training.objective.figures(view)}, share)
        return totals

    def _tell_of_memory(self, text: str) -> None:
        self.report.memory.append(text)
        self.training.job.warn(f"{self.training.step.name}: {text}")

    def _update(self, loss: float) -> None:
        training = self.training
        norm = self.accelerator.clip_grad_norm_(list(training.parameters.values()), training.step.max_grad_norm)
        if not math.isfinite(loss) or (norm is not None and not torch.isfinite(norm)):
            raise LearningError(
                f"the loss is {loss} at step {self.done}", where=training.step.name,
                hint="take a smaller learning_rate, or more warm-up; and look for inf or nan in the data's model",
            )  # fmt: skip
        if training.mask is not None:
            for name, parameter in training.parameters.items():
                if parameter.grad is not None:
                    training.mask(name, parameter.grad)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _tell(self, figures: Mapping[str, float], rate: float) -> None:
        """Tell of a step; with it come the held-out figures before the first step and the newest ones."""
        report = self.report
        left = (self.training.steps - self.done) * report.seconds / len(report.losses)
        newest = report.after or (report.held_out[-1][1] if report.held_out else report.before)
        before = {f"held_out_before_{name}": value for name, value in report.before.items()}
        all_figures = {
            "tokens_per_second": rate, "eta_seconds": left, **figures,
            **before, **{f"held_out_{name}": value for name, value in newest.items()},
        }  # fmt: skip
        self.training.job.progress(self.done, self.training.steps, "steps", "training", all_figures)

    def _view(self, model: nn.Module, data: Examples, numbers: Sequence[int]) -> BatchOutputs:
        batch = collate([data.examples[number] for number in numbers], numbers, self.training.device)
        reference = self.reference[id(data)] if self.training.objective.reference else {}
        return BatchOutputs(self.training, model, batch, reference)

    def _shares(self, numbers: Sequence[int], what: str) -> Iterator[Sequence[int]]:
        """Yield this process's examples in batches, as many as in every other process, even if some are empty."""
        training = self.training
        size = max(1, training.step.batch_size // training.step.gradient_accumulation_steps)
        mine = numbers[self.index :: self.count]
        most = math.ceil(len(numbers) / self.count)
        for at in range(0, most, size):
            self._stop_if_asked()
            if part := mine[at : at + size]:
                yield part
            training.job.progress(min(at + size, most), most, "examples", what)

    @torch.no_grad()
    def _references(self) -> dict[int, dict[int, torch.Tensor]]:
        """Return the log-probabilities of all labels that will be needed, by data, by example."""
        training = self.training
        if not training.objective.reference:
            return {}
        training.model.eval()
        size, count = training.step.batch_size, len(training.data.examples)
        seen = {one for step in range(training.steps) for one in examples_of_step(step, size, count, training.seed)}
        found = {id(training.data): self._log_probs(training.data, sorted(seen))}
        if training.held_out is not None:
            found[id(training.held_out)] = self._log_probs(training.held_out, range(len(training.held_out.examples)))
        return found

    def _log_probs(self, data: Examples, numbers: Sequence[int]) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for share in self._shares(numbers, "reference"):
            for part, values_BT in self._in_parts(share, lambda part: self._log_probs_of(data, part)):
                # (sequences of an example, T)
                by_example = values_BT.view(-1, len(part), values_BT.shape[1]).transpose(0, 1).cpu()
                found |= dict(zip(part, by_example, strict=True))
        return {number: values for process in all_gather(found) for number, values in process.items()}

    def _log_probs_of(self, data: Examples, part: Sequence[int]) -> torch.Tensor:
        batch = collate([data.examples[number] for number in part], part, self.training.device)
        return label_log_probs(logits_of(self.training.model, batch), batch.labels_BT)

    def _in_parts(self, numbers: Sequence[int], run: Callable[[Sequence[int]], T]) -> list[tuple[Sequence[int], T]]:
        """Return the parts of some examples with what `run` makes of each; smaller ones where memory runs out."""
        size = len(numbers)
        return self.micro.run(numbers, size, lambda parts: [(part, run(part)) for part in parts], lambda: None)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Return the mean loss and figures over the held-out examples, whatever batches they are run in."""
        training, data = self.training, self.training.held_out
        assert data is not None
        training.model.eval()
        totals: dict[str, float] = {}
        numbers = range(len(data.examples))
        for share in self._shares(numbers, "held-out loss"):
            for _, (figures, weight) in self._in_parts(share, lambda part: self._figures_of(data, part)):
                add_weighted(totals, {**figures, _WEIGHT: 1.0}, weight)
        totals = summed(all_gather(totals))
        weight = totals.pop(_WEIGHT) or 1.0
        return {name: value / weight for name, value in totals.items()}

    def _figures_of(self, data: Examples, part: Sequence[int]) -> tuple[dict[str, float], float]:
        view, objective = self._view(self.training.model, data, part), self.training.objective
        return {"loss": objective.loss(view).item(), **objective.figures(view)}, objective.weight(view)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        training = self.training
        state = {
            "done": self.done,
            "parameters": {name: parameter.detach() for name, parameter in training.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "report": vars(self.report),
            "limit": self.micro.limit,
        }
        try:
            save_state(training.state, state)
        except OSError as error:  # what is trained is worth more than what a broken run could go on from
            reason = error.strerror or error
            training.job.warn(f"a run that is broken off would begin anew: no state in {training.state}: {reason}")

    def _resume(self) -> int:
        training, state = self.training, load_state(self.training.state, self.training.device)
        # On several machines the state may lie with the first process alone: then all begin anew.
        if len(set(all_gather(state["done"] if state else 0))) > 1 or state is None:
            return 0
        with torch.no_grad():
            for name, parameter in training.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.report = TrainingReport(**state["report"])
        self.micro.limit = state.get("limit")
        training.job.log(f"going on from step {state['done']} of {training.steps}")
        return int(state["done"])


_SEEDS = 1 << 63
"""As many as torch takes."""
_TOKENS = "tokens"
_WEIGHT = "weight"
