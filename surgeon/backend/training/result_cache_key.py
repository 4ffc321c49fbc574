"""The address of a learning step's result: a digest of everything that makes it, and of nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from surgeon.backend.data.chat_template import is_marked
from surgeon.backend.data.rows import source_digest
from surgeon.backend.digests import contents_digest, digest_of, side_digest
from surgeon.backend.model.loading import load_tokenizer
from surgeon.backend.training.rewriter_rewards import rewriter_digest
from surgeon.core.recipe.learning_step import WITHOUT_EFFECT, LearningStep, draft_state

if TYPE_CHECKING:
    from surgeon.backend.training.training_request import TrainingRequest

_VERSION = 4
"""Raised whenever the same inputs would give another result."""


def result_cache_key(request: TrainingRequest) -> str:
    """Return the digest of the base and its tokenizer, the draft before the step, its settings, its data, the seed."""
    checkpoint = request.draft.structure.checkpoint
    settings = _settings(request.step)
    sources = {name: settings.pop(name) for name in ("data", "held_out") if name in settings}
    digests: dict[str, str] = {
        name: _source_digest(request, value) for name, value in {"data": None, **sources}.items()
    }
    choice = getattr(request.step, "minimised", None) or getattr(request.step, "objective", None)
    if choice is not None and choice.objective.token_rewards is not None:
        digests["rewriter"] = rewriter_digest(choice.objective, request.root)
    if choice is not None and choice.objective.rows != "text" and is_marked(load_tokenizer(checkpoint)):
        digests["answers"] = "as the chat template marks them"
    contents = contents_digest(request.draft.checkpoints)
    made_of = (_VERSION, contents, side_digest(checkpoint), draft_state(request.draft), request.step.name,
               settings, digests, request.seed)  # fmt: skip
    return digest_of(made_of)


def _settings(step: LearningStep) -> dict[str, Any]:
    """Return the settings that change a weight."""
    settings: dict[str, Any] = msgspec.to_builtins(step, enc_hook=lambda value: value.plain)
    for name in WITHOUT_EFFECT:
        settings.pop(name, None)
    objective = settings.get("objective")
    if isinstance(objective, dict):  # a rewriter is known by its bytes, wherever it lies
        ((name, fields),) = objective.items()
        settings["objective"] = {name: {key: value for key, value in fields.items() if key != "rewriter"}}
    return settings


def _source_digest(request: TrainingRequest, data: str | None) -> str:
    if data is not None and data.endswith("%"):
        return data
    return source_digest(request.source(data), request.root)
