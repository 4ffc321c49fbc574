"""A learning step to carry out, with its data, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.data.examples import ALL, Examples, Wanted, read_examples
from surgeon.backend.model.loading import load_tokenizer
from surgeon.backend.training.accelerator import Precision, precision_of
from surgeon.backend.training.rewriter_rewards import rewarding_of
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.objective import Objective
from surgeon.errors import DataError


@dataclass(frozen=True)
class TrainingRequest:
    """A learning step to carry out. `named` turns a name of the recipe's data into a file, relative to `root`."""

    draft: Draft
    step: LearningStep
    named: Mapping[str, str]
    root: Path
    seed: int
    device: torch.device
    job: JobContext

    @property
    def precision(self) -> Precision:
        """What products are taken in."""
        return precision_of(self.step, self.device)

    def source(self, data: str | None) -> str | None:
        """Return the file that a step's data means."""
        return self.named.get(data, data) if data else None

    def examples(self, objective: Objective, data: str | None) -> Examples:
        """Read and tokenise data for an objective."""
        tokenizer = load_tokenizer(self.draft.structure.checkpoint)
        rewarding = rewarding_of(objective, self.root, tokenizer, self.device, self.job)
        return read_examples(
            self.source(data), self.root, tokenizer, objective.rows, self.step.max_length, rewarding,
            self._wanted() if data == self.step.data else ALL,
        )  # fmt: skip

    def _wanted(self) -> Wanted:
        """Return how much data the step sees, with what is held out of it."""
        step = self.step
        share = _share(step.held_out) if step.held_out is not None and step.held_out.endswith("%") else 0.0
        more = 1 / max(1 - share, 0.5)
        if step.steps is not None:
            return Wanted(examples=math.ceil(step.steps * step.batch_size * more) + 1)
        if step.tokens is not None:  # the last step is whole, whatever is wanted of it
            return Wanted(tokens=math.ceil((step.tokens + step.batch_size * step.max_length) * more))
        return ALL

    def split(self, objective: Objective) -> tuple[Examples, Examples | None]:
        """Return the examples to train on and those held out."""
        data, held_out = self.examples(objective, self.step.data), self.step.held_out
        if held_out is None:
            return data, None
        if held_out.endswith("%"):
            return data.split(_share(held_out))
        held = self.examples(objective, held_out)
        if held.weighted != data.weighted:
            raise DataError(
                "has token rewards in one of data and held_out, and in the other none", where=self.step.name,
                hint="give both rewards, or name a rewriter: figures of the two cannot be compared",
            )  # fmt: skip
        return data, held


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100
    except ValueError as error:
        raise DataError(f"{text!r} is no share", where="held_out", allowed="a share such as 5%") from error


@dataclass(frozen=True)
class TrainingResult:
    """What a procedure came to: tensors by their name in the result, and the report as plain data."""

    tensors: Mapping[str, torch.Tensor]
    report: Mapping[str, Any]
