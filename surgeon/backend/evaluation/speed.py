"""How fast a model reads a prompt and writes tokens, and what memory that takes, beside the base on the same machine.

The two are arrangements of the same weights, so they take turns: whatever else the machine does meets both alike, and
each round gives a ratio of its own.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from surgeon.backend.evaluation.divergence import AsBase
from surgeon.backend.evaluation.items import Items
from surgeon.backend.model.streaming import fits_in_memory
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.evaluation_metrics import RawResults
from surgeon.errors import ScoreError

Tell = Callable[[int], None]


def require_own_speed(
    base: Draft, dtype: torch.dtype | None, device: torch.device, where: str, *, stream: bool = False
) -> None:
    """Refuse a model that is not in memory here as it would be where it is used.

    Raises:
        ScoreError: its layers lie on disk, or it is held quantised for training.
    """
    checkpoint = base.structure.checkpoint
    if checkpoint.load_in is not None:
        raise ScoreError(
            f"the base is held in {checkpoint.load_in}, and an export is not: its speed would be another", where=where,
            hint="leave base.load_in out for it",
        )  # fmt: skip
    if stream or not fits_in_memory(checkpoint, dtype, device):
        raise ScoreError(
            "does not fit in memory: its speed would be that of the disk", where=where,
            hint="measure it on a larger machine, or in a smaller --dtype; or give a budget of bytes or memory",
        )  # fmt: skip


def prompt_of(items: Items, length: int) -> list[int]:
    """Return a prompt of so many tokens of the items' text, which begins anew where it is shorter."""
    text = [token for (window,) in items.examples for token in window.tokens]
    return list(islice(cycle(text), length))


def speed(
    edited: nn.Module, as_base: AsBase, prompt: list[int], new_tokens: int, rounds: int, tell: Tell,
    *, memory: bool = True,
) -> RawResults:  # fmt: skip
    """Return for each round the seconds of prefill and of decoding, of the edited model and of the base.

    One sequence; greedy; no token ends it. Prefill is the time until the first token's logits are there; decoding the
    time from there to those of the last. An untimed run before them makes what is made once, and tells the `memory`.
    """
    asked_BT = torch.tensor([prompt], device=next(edited.parameters()).device)
    peaks = {}
    for name, arranged in (("peak_memory", nullcontext), ("base_peak_memory", as_base)):
        with arranged():
            if memory:
                peaks[name] = _peak_bytes(edited, asked_BT, new_tokens)
            else:
                _seconds(edited, asked_BT, 2)
    told = []
    for number in range(rounds):
        seconds: dict[bool, tuple[float, float]] = {}
        for base in (False, True) if number % 2 == 0 else (True, False):  # neither is always the second
            context: AbstractContextManager[Any] = as_base() if base else nullcontext()
            with context:
                seconds[base] = _seconds(edited, asked_BT, new_tokens)
        told.append([*seconds[False], *seconds[True]])
        tell(number + 1)
    return RawResults(
        values=told, sizes=[[len(prompt), new_tokens - 1]] * rounds, peaks=peaks,
        measured_on=_machine(edited, len(prompt), new_tokens, rounds),
    )  # fmt: skip


class _Clock(LogitsProcessor):
    """Notes when the logits of the first and of the last token are there."""

    def __init__(self, last: int) -> None:
        self.last, self.calls, self.times = last, 0, list[float]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits as they are."""
        del input_ids
        self.calls += 1
        if self.calls in (1, self.last):
            _wait(scores.device)
            self.times.append(time.perf_counter())
        return scores


@torch.inference_mode()
def _seconds(model: Any, asked_BT: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    clock = _Clock(new_tokens)
    _wait(asked_BT.device)
    start = time.perf_counter()
    _generate(model, asked_BT, new_tokens, clock)
    first, last = clock.times
    return first - start, last - first


def _generate(model: Any, asked_BT: torch.Tensor, new_tokens: int, *processors: LogitsProcessor) -> None:
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=1, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0
    )
    model.generate(
        input_ids=asked_BT, attention_mask=torch.ones_like(asked_BT), generation_config=greedy,
        logits_processor=LogitsProcessorList(processors),
    )  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@torch.inference_mode()
def _peak_bytes(model: Any, asked_BT: torch.Tensor, new_tokens: int) -> int:
    """Return the bytes of the weights and of the most that is there beside them while the model runs.

    The weights are counted from the model, since those of the other arrangement lie in memory too. On a GPU the rest is
    told by torch's allocator; elsewhere it is the tensors that torch makes, without the work space of its kernels.
    """
    tensors = (*model.parameters(), *model.buffers())
    weights: int = sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())
    device = asked_BT.device
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _generate(model, asked_BT, new_tokens)
        _wait(device)
        peak: int = torch.cuda.max_memory_allocated(device) - before
        return weights + peak
    live = _LiveTensors()
    with live:
        _generate(model, asked_BT, new_tokens)
    return weights + live.peak


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and not one.is_meta:
                self._count(one.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        name = id(storage)
        if name in self._known or name in given:  # a view, or done in place
            return
        self._known.add(name)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        finalize(storage, self._gone, name, storage.nbytes())

    def _gone(self, name: int, nbytes: int) -> None:
        self._known.discard(name)
        self.now -= nbytes


def _machine(model: Any, prompt: int, new_tokens: int, rounds: int) -> str:
    """Say what was measured, and on what: the same model is faster elsewhere, and in another dtype."""
    parameter = next(model.parameters())
    device = parameter.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    dtype = str(parameter.dtype).removeprefix("torch.")
    attention = getattr(model.config, "_attn_implementation", None) or "own"
    return (
        f"{name}{busy}; {dtype}, {attention} attention, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; one sequence, {prompt} + {new_tokens} tokens, {rounds} rounds"
    )


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(errors="replace").splitlines() if listed.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
