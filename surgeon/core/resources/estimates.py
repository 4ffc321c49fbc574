"""What scores, learning steps, evaluations and exports take: memory, bytes, forwards and seconds, from headers alone.

Seconds are those of a machine's measured rates: matrix products, singular values, copies, reads. They leave out what
those rates do not tell, such as the time that imports take. Learning steps take what `training_bytes` says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.plan.plan import Plan
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.training_memory import is_blockwise, trained_parameters, training_bytes
from surgeon.core.resources.machine import PROCESS_BYTES, Machine
from surgeon.core.scoring.costs import expected_forwards, head_in_layers
from surgeon.core.scoring.score_kinds import ScoreKind, WeightsScore

SHARE_OF_MEMORY = 0.6
"""Of what is free; a model that takes more is streamed."""
_VALUES = {"U8": 2, "I8": 2, "I32": 8, "U32": 8}
"""How many weights of four bits an integer holds, once they are dequantised; models that are not have next to none."""
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATES = 32 << 20
_LOGITS_BYTES = {"cpu": 3 * (64 << 20)}
_MOST_LOGITS_BYTES = 3 * (512 << 20)
_BATCH_TOKENS = {"cpu": 512}
"""On a CPU more tokens at once are no faster, and what an MLP puts out in between grows with them."""
_MOST_BATCH_TOKENS = 4096
_FORWARD, _BACKWARD_OF_WEIGHTS, _BACKWARD_OF_ACTIVATIONS = 2, 2, 2
"""Floating-point operations per weight and token."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work. Memory is that of one process at its peak, on the device that it calculates on.

    forwards: of the whole model over the text.   seconds: None where they depend on data that was not read.
    setting: what makes it fit, or that nothing does; empty where it fits as it is.
    """

    step: str
    memory_bytes: int
    read_bytes: int = 0
    written_bytes: int = 0
    forwards: float | None = None
    seconds: float | None = None
    fits: bool = True
    setting: str = ""


def batch_tokens(kind: str) -> int:
    """Return how many tokens go through a layer at once on a kind of device, unless memory runs out."""
    return _BATCH_TOKENS.get(kind, _MOST_BATCH_TOKENS)


def loaded_bytes(checkpoint: Checkpoint, size: int | None) -> int:
    """Return what all weights take once they are loaded with `size` bytes each; None: as they are stored."""
    if size is None:
        return checkpoint.nbytes
    values = sum(count * _VALUES.get(kind, 1) for kind, count in checkpoint.dtype_parameters.items())
    return max(values * size, checkpoint.nbytes)


@dataclass(frozen=True)
class Estimator:
    """Tells what work takes on a machine, of which `memory` bytes may be used, and on how many GPUs training runs."""

    machine: Machine
    memory: int
    gpus: int = 1

    def scores(
        self, draft: Draft, kinds: Sequence[ScoreKind], tokens: int, title: str, *, rounds: int = 1
    ) -> Iterator[Work]:
        """Yield what measuring scores takes, pass by pass; a search measures them in some `rounds`, at most as much."""
        model = _Model(draft, self._size)
        weights = [kind for kind in kinds if isinstance(kind, WeightsScore)]
        if weights:
            spectra = any(kind.decomposes for kind in weights)
            yield self._weights(model, spectra, f"{title}: {_names(weights)}")
        forwards = expected_forwards(kinds, draft)
        for kind_of_pass in ("activations", "inputs", "parts", "gradients", "sweep"):
            group = [kind for kind in kinds if kind.needs == kind_of_pass]
            if group:
                names = [one.name for one in group] if kind_of_pass == "sweep" else [kind_of_pass]
                count = rounds * sum(forwards[name] for name in names)
                yield self._live(model, kind_of_pass, count, tokens, f"{title}: {_names(group)}")

    def _weights(self, model: _Model, spectra: bool, title: str) -> Work:
        seconds = model.layer_bytes / self.machine.read
        if spectra:
            seconds += model.decompositions / self.machine.decompositions
        memory = PROCESS_BYTES["cpu"] + model.largest_matrix * (4 + 4 + (8 * 2 if spectra else 0))
        return self._judged(Work(step=title, memory_bytes=memory, read_bytes=model.layer_bytes, seconds=seconds))

    def _live(self, model: _Model, kind_of_pass: str, forwards: float, tokens: int, title: str) -> Work:
        batch = batch_tokens(self.machine.kind)
        computing = forwards * tokens * _FORWARD * model.active / self.machine.operations
        beside = self._process + self._logits + batch * model.widest * 3 * (self._size or 2)
        whole = model.whole_bytes * (2 if kind_of_pass == "gradients" else 1)
        reading = model.stored_bytes / self.machine.read
        resident = Work(
            step=title, memory_bytes=whole + beside, read_bytes=model.stored_bytes, forwards=forwards,
            seconds=reading + model.whole_bytes / self.machine.copied + computing,
        )  # fmt: skip
        if whole < self.memory * SHARE_OF_MEMORY:
            return resident
        if kind_of_pass == "gradients":
            text = f"nothing: gradients need the whole model; {self._smaller_model}, or another score"
            return msgspec.structs.replace(resident, fits=False, setting=text)
        streamed = msgspec.structs.replace(
            resident, memory_bytes=model.streamed_bytes + beside + _STATES, setting="--stream",
            seconds=max(reading, model.whole_bytes / self.machine.copied, computing),
        )  # fmt: skip
        return self._judged(
            streamed, f"nothing: two layers and what stands outside them do not fit; {self._smaller_model}"
        )

    def training(self, step: LearningStep, draft: Draft, plan: Plan, tokens: int | None, title: str) -> Work:
        """Return what a learning step takes; each of several GPUs holds all of it, and they share the batches."""
        memory = self._process + training_bytes(step, draft, plan)
        model = _Model(draft, 4)
        part = float(_FORWARD + _BACKWARD_OF_ACTIVATIONS)
        share = trained_parameters(step, draft, plan) / max(plan.parameters, 1)
        if is_blockwise(step):  # both models once, and each changed layer in training, before it and after it
            part = 2 * _FORWARD + (3 * _FORWARD + _BACKWARD_OF_ACTIVATIONS + _BACKWARD_OF_WEIGHTS) * share
        elif not plan.adapters:
            part += _BACKWARD_OF_WEIGHTS * share
        if step.gradient_checkpointing:
            part += _FORWARD
        seconds = None
        if tokens is not None:
            seconds = plan.nbytes / self.machine.read
            seconds += part * tokens * model.active / self.machine.operations / self.gpus
        work = Work(
            step=title, memory_bytes=memory, read_bytes=plan.nbytes, seconds=seconds, fits=memory <= self.memory,
            written_bytes=4 * trained_parameters(step, draft, plan),
            forwards=None if tokens is None else part / _FORWARD,
        )  # fmt: skip
        return work if work.fits else msgspec.structs.replace(work, setting=self._smaller(step, draft, plan))

    def _smaller(self, step: LearningStep, draft: Draft, plan: Plan) -> str:
        """Return the first of some changes to a learning step with which it fits."""
        if is_blockwise(step):
            return "nothing of the step; freeze parts of the changed layers"
        changes: dict[str, Any] = {}
        for name, value in (
            ("gradient_accumulation_steps", step.batch_size), ("gradient_checkpointing", True), ("max_length", 256),
        ):  # fmt: skip
            if name == "max_length" and step.max_length <= value:
                continue
            changes[name] = value
            changed = msgspec.structs.replace(step, **changes)
            if self._process + training_bytes(changed, draft, plan) <= self.memory:
                return ", ".join(f"{key}: {str(one).lower()}" for key, one in changes.items())
        if plan.adapters:
            return "nothing here: training is not sharded; a larger device, or a smaller model"
        return "nothing of the step; masked_lora before it trains adapters alone"

    def evaluation(self, draft: Draft, title: str, *, streams: bool = False) -> Work:
        """Return what an evaluation takes, which `streams` where it must and can; its time depends on its data."""
        model = _Model(draft, self._size)
        memory = model.whole_bytes + self._process + self._logits
        work = Work(step=title, memory_bytes=memory, read_bytes=model.stored_bytes, forwards=1.0)
        if streams and model.whole_bytes >= self.memory * SHARE_OF_MEMORY:
            memory = model.streamed_bytes + self._process + self._logits + _STATES
            work = msgspec.structs.replace(work, memory_bytes=memory, setting="--stream")
        return self._judged(work, f"nothing: an evaluation needs the whole model; {self._smaller_model}")

    def export(self, plan: Plan) -> Work:
        """Return what writing the result takes: tensors are copied one at a time."""
        largest = max((tensor.nbytes for tensor in plan.tensors), default=0)
        seconds = plan.nbytes / self.machine.read + plan.nbytes / self.machine.copied
        return Work(
            step="export", memory_bytes=PROCESS_BYTES["cpu"] // 5 + largest, read_bytes=plan.nbytes,
            written_bytes=plan.nbytes, seconds=seconds,
        )  # fmt: skip

    def _judged(self, work: Work, otherwise: str = "nothing: a larger machine") -> Work:
        fits = work.memory_bytes <= self.memory
        return work if fits else msgspec.structs.replace(work, fits=False, setting=otherwise)

    @property
    def _smaller_model(self) -> str:
        return "--dtype bfloat16, or a larger device" if self._size == _SIZES["float32"] else "a larger device"

    @property
    def _size(self) -> int | None:
        return _SIZES.get(self.machine.dtype)

    @property
    def _process(self) -> int:
        return PROCESS_BYTES.get(self.machine.kind, PROCESS_BYTES["cuda"])

    @property
    def _logits(self) -> int:
        return _LOGITS_BYTES.get(self.machine.kind, _MOST_LOGITS_BYTES)


class _Model:
    """What the sizes of a draft's tensors come to, each weight taking `size` bytes in memory; None: as stored."""

    def __init__(self, draft: Draft, size: int | None) -> None:
        structure, stack = draft.structure, draft.structure.stack()
        checkpoint = structure.checkpoint
        layouts = Counter(layout_of(structure, stack, layer.source) for layer in draft.layers())
        base = sum(one.layout.nbytes for one in stack.layers)
        inflated = loaded_bytes(checkpoint, size) / max(checkpoint.nbytes, 1)
        self.layer_bytes = sum(layout.nbytes * times for layout, times in layouts.items())
        self.stored_bytes = checkpoint.nbytes - base + self.layer_bytes
        self.whole_bytes = round(self.stored_bytes * inflated)
        outside = (checkpoint.nbytes - base) * inflated
        self.streamed_bytes = round(outside + 2 * inflated * max((layout.nbytes for layout in layouts), default=0))
        share = _share_of_experts(structure.stack_config(stack))
        weights = sum(
            times * sum(_parameters(one) * (share if ".experts." in f".{suffix}" else 1.0)
                        for suffix, one in layout.types.items())
            for layout, times in layouts.items()
        )  # fmt: skip
        parameters = sum(layout.parameters * times for layout, times in layouts.items())
        head = head_in_layers(draft) * parameters / max(len(draft.layers()), 1)
        self.active = weights + head
        matrices = [one for layout in layouts for one in layout.types.values() if len(one.shape) > 1]
        self.largest_matrix = max((math.prod(one.shape[-2:]) for one in matrices), default=0)
        self.widest = max((max(one.shape[-2:]) for one in matrices), default=0)
        self.decompositions = float(sum(
            times * math.prod(one.shape) * min(one.shape[-2:])
            for layout, times in layouts.items() for one in layout.types.values() if len(one.shape) > 1
        ))  # fmt: skip


def _parameters(tensor: Any) -> int:
    return math.prod(tensor.shape)


def _share_of_experts(config: Mapping[str, Any]) -> float:
    """Return the share of the experts that a token goes through."""
    chosen = config.get("num_experts_per_tok") or config.get("moe_top_k") or 1
    every = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or chosen
    return float(chosen / every)


def _names(kinds: Sequence[ScoreKind]) -> str:
    return ", ".join(kind.name for kind in kinds)
