"""A model with its calibration text, ready to be measured: loaded once, shared by all passes that need it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from surgeon.backend.data.calibration import Calibration, read_calibration
from surgeon.backend.device import choose_device, choose_dtype
from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.backend.model.input_limits import refuse_unreadable
from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.layer_runner import LayerRunner
from surgeon.backend.model.loading import load_tokenizer, resident_model
from surgeon.backend.model.losses import batches_of
from surgeon.backend.model.streaming import fits_in_memory, is_streamed, room_for_states
from surgeon.backend.trained_adapters import Updates, trained_adapters_on
from surgeon.core.events import LayerScored
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import RecipeJob
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.apply_steps import measured_draft, unfrozen
from surgeon.core.resources.estimates import batch_tokens
from surgeon.core.scoring.score import Average, Provenance


@dataclass(frozen=True)
class Settings:
    """How to measure: sequences x length tokens of `data` (None: the built-in text), relative to `root`.

    `stream` leaves the layers on disk, one in memory at a time; None decides by what is free. `batch_tokens` is where
    the search for a batch size starts, None for what suits the device; it is halved whenever memory runs out.
    `weights_only` leaves trained adapters out.
    """

    root: Path
    data: str | None = None
    sequences: int = 12
    length: int = 256
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    stream: bool | None = None
    batch_tokens: int | None = None
    weights_only: bool = False

    @property
    def first_batch(self) -> int:
        """How many tokens go through a layer at once, unless memory runs out."""
        return self.batch_tokens or batch_tokens(choose_device(self.device).type)


class Row(msgspec.Struct, frozen=True):
    """One layer's part of a score."""

    value: float
    error: float | None = None
    matrices: dict[str, float] = {}


Rows = Mapping[str, Mapping[int, Row]]
"""By name of a score, then by position of the layer."""


def draft_to_measure(draft: Draft, settings: Settings) -> Draft:
    """Return what is measured of a draft: the model as it is, trained adapters included unless they are left out."""
    return unfrozen(draft) if settings.weights_only else measured_draft(draft)


WEIGHTS_ONLY = "trained adapters are left out, as asked: these are the weights below them alone"


@dataclass(frozen=True)
class ScoringContext:
    """Everything a pass needs.

    keys: the layer keys of the draft, in order.   known: rows that need no measuring.
    room: how many bytes of hidden states may stay in memory.
    updates: what trained adapters add, by module; the model computes with it.
    """

    draft: Draft
    model: nn.Module
    runner: LayerRunner
    calibration: Calibration
    batches: Sequence[torch.Tensor]
    targets: Sequence[torch.Tensor]
    keys: Sequence[str]
    job: JobContext
    known: Rows
    room: int
    updates: Updates

    @property
    def streamed(self) -> bool:
        """Whether layers lie on disk until they are used."""
        return any(is_streamed(layer) for layer in self.runner.layers)

    def with_update(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """Return a module's weight with what a trained adapter adds to it, in float32; as it is where there is none."""
        update = self.updates.get(module)
        return weight if update is None else weight.float() + update.weight

    def progress(self, done: int, total: int, what: str, unit: str = "layers") -> None:
        """Tell how far a pass is."""
        self.job.progress(done, total, unit, what)

    def scored(self, score: str, layer: int, average: Average, matrices: dict[str, float] | None = None) -> None:
        """Tell one layer's score the moment it is known."""
        self.job.emit(
            LayerScored(
                score=score, layer=self.keys[layer], value=average.value, error=average.error, matrices=matrices
            )
        )


def provenance_of(draft: Draft, settings: Settings, calibration: Calibration | None = None) -> Provenance:
    """Return what a measurement with these settings is made from; `data` names the text as it was tokenised."""
    checkpoint, digest = draft.structure.checkpoint, draft.measured_digest
    if calibration is None:
        return Provenance(fingerprint=checkpoint.fingerprint, draft=digest)
    trusted = checkpoint.trust_remote_code or msgspec.UNSET
    dtype = choose_dtype(settings.dtype, choose_device(settings.device))
    return Provenance(
        fingerprint=checkpoint.fingerprint, draft=digest, data=_text_digest(calibration),
        sequences=settings.sequences, length=settings.length, seed=settings.seed,
        dtype=str(dtype or "auto").removeprefix("torch."), trust_remote_code=trusted,
    )  # fmt: skip


def _text_digest(calibration: Calibration) -> str:
    tokens = (calibration.tokens_BT.tolist(), calibration.targets_BT.tolist())
    return hashlib.sha256(msgspec.json.encode((calibration.digest, tokens))).hexdigest()[:16]


def calibration_of(draft: Draft, settings: Settings, job: JobContext | None = None) -> Calibration:
    """Read the calibration text with the model's own tokenizer; say which keys of its rows nothing reads."""
    tokenizer: Any = load_tokenizer(draft.structure.checkpoint)
    calibration = read_calibration(
        settings.data, settings.root, tokenizer,
        sequences=settings.sequences, length=settings.length, seed=settings.seed,
    )  # fmt: skip
    if calibration.unread and job is not None:
        job.warn(calibration.unread)
    return calibration


@contextmanager
def scoring_context(
    draft: Draft, settings: Settings, calibration: Calibration, batch_tokens: int, job: JobContext,
    known: Rows | None = None,
) -> Iterator[ScoringContext]:  # fmt: skip
    """Load the model, operate on it as the draft says, and yield it with its text on the device."""
    checkpoint = draft.structure.checkpoint
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    stream = settings.stream if settings.stream is not None else not fits_in_memory(checkpoint, dtype, device)
    how = "layer by layer from disk" if stream else "whole"
    job.log(f"loading {checkpoint.path.name} {how} on {device}")
    with ExitStack() as stack:
        model = resident_model(draft.structure, dtype, device, stream=stream).model
        refuse_unreadable(model, calibration.rows, settings.data or "data", "length")
        edited = stack.enter_context(apply_draft(model, draft))
        layers = layer_list(edited, draft.structure.stack(), count=len(draft.layers()))
        updates = stack.enter_context(trained_adapters_on(edited, draft, device))
        batches = batches_of(calibration.tokens_BT.to(device), batch_tokens)
        yield ScoringContext(
            draft=draft, model=edited, runner=LayerRunner(edited, layers, batches[0]), calibration=calibration,
            batches=batches, targets=batches_of(calibration.targets_BT.to(device), batch_tokens),
            keys=[layer.key for layer in draft.layers()], job=job,
            known=known or {}, room=room_for_states(device, streamed=stream), updates=updates,
        )  # fmt: skip


def settings_of(job: RecipeJob) -> Settings:
    """Return how a job measures."""
    return Settings(
        root=Path(job.root), data=job.data, sequences=job.sequences, length=job.length, seed=job.seed,
        device=job.device, dtype=job.dtype, stream=job.stream, batch_tokens=job.batch_tokens,
    )  # fmt: skip
