"""Token rewards from a rewriter, a model that mends answers (ALLO, arXiv:2406.12606, forgetting stage).

It reads the question, a right answer and the wrong one, and its probability of each token of the wrong one, as if it
wrote that again, says whether it would keep the token.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.data.chat_template import rendered
from surgeon.backend.data.dialogues import PAYLOAD, assistant, content_of, user
from surgeon.backend.data.examples import Rewarding, collate
from surgeon.backend.data.row import Row
from surgeon.backend.data.tokens import Tokens, labelled
from surgeon.backend.digests import content_digest, side_digest
from surgeon.backend.model.fit import require_fit
from surgeon.backend.model.loading import forget_model, load_model, load_tokenizer
from surgeon.backend.model.losses import IGNORED, label_log_probs
from surgeon.backend.training.training_run import logits_of
from surgeon.core.checkpoint.base_path import locate_base
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.job_context import JobContext
from surgeon.core.recipe.objective import Objective
from surgeon.errors import DataError

TASK = "{asked}\n\nA correct answer:\n{right}\n\nCorrect this answer with as few changes as possible:\n{wrong}"
"""What the rewriter is told; its answer begins with the wrong one."""
_BATCH = 8


def _rewriter(objective: Objective, root: Path) -> Checkpoint:
    """Open the rewriter. Code that it brings is not run: trust in the base's says nothing of another model's."""
    name = str(objective.token_rewards)
    return open_checkpoint(root / name if (root / name).is_dir() else locate_base(name, root))


def rewriter_digest(objective: Objective, root: Path) -> str:
    """Return the digest of the rewriter's own bytes, its tokenizer's too."""
    checkpoint = _rewriter(objective, root)
    return content_digest(checkpoint) + side_digest(checkpoint)


def rewarding_of(
    objective: Objective, root: Path, tokenizer: Any, device: torch.device, job: JobContext
) -> Rewarding | None:
    """Return what gives rows the rewards they lack, where the objective names a rewriter."""
    if objective.token_rewards is None:
        return None
    rewriter = _rewriter(objective, root)
    require_fit(rewriter)

    def rewarding(rows: Sequence[Row]) -> list[Row]:
        own = load_tokenizer(rewriter)
        lacking = [row for row in rows if row.rewards is None]
        sequences = [_sequence(row, own, tokenizer) for row in lacking]
        forget_model()
        model = load_model(rewriter, torch.float32, device).model
        found: list[Row] = []
        for at in range(0, len(lacking), _BATCH):
            job.stop_if_cancelled()
            job.progress(at, len(lacking), "rows", "rewarding tokens")
            rewards = probabilities(model, sequences[at : at + _BATCH], device)
            found += [replace(row, rewards=one) for row, one in zip(lacking[at:], rewards, strict=False)]
        judged = iter(found)
        return [row if row.rewards is not None else next(judged) for row in rows]

    return rewarding


def _sequence(row: Row, own: Any, tokenizer: Any) -> Tokens:
    """Return what the rewriter reads, the wrong answer labelled.

    Raises:
        DataError: an answer is missing, or the two models cut it into other tokens.
    """
    if row.right is None or row.wrong is None:
        raise DataError(
            "has no right answer beside the wrong one, which the rewriter is to see", where=row.where,
            allowed='{"prompt", "chosen", "rejected"}', hint="or give token rewards",
        )  # fmt: skip
    if any(answer.get(key) for answer in (row.right, row.wrong) for key in PAYLOAD):
        raise DataError(
            "has an answer with more than a text, and a rewriter is told texts alone", where=row.where,
            allowed="answers that are texts", hint="or give token rewards",
        )  # fmt: skip
    asked = "\n\n".join(map(content_of, row.asked_wrong))
    told = TASK.format(asked=asked, right=content_of(row.right), wrong=content_of(row.wrong))
    # What it is told stands in one message: it needs no tools and no variables of the row's own template.
    judged = rendered((user(told), assistant(content_of(row.wrong))), Row(row.where), own)
    found = labelled(judged, judged.last_alone, own, sys.maxsize, row)
    if found is None:
        raise DataError("has an empty wrong answer", where=row.where, hint="leave the row out")
    dialogue = rendered(row.ended_wrongly, row, tokenizer)
    wanted = labelled(dialogue, dialogue.last_alone, tokenizer, sys.maxsize, row)
    if wanted is None or _answer_of(found) != _answer_of(wanted):
        raise DataError(
            "is cut into other tokens by the rewriter, so its rewards fit none of the model's", where=row.where,
            allowed="a rewriter with the same tokenizer and chat template",
        )  # fmt: skip
    return found


def _answer_of(one: Tokens) -> list[int]:
    return [label for label in one.labels if label != IGNORED]


@torch.no_grad()
def probabilities(model: torch.nn.Module, sequences: Sequence[Tokens], device: torch.device) -> list[tuple[float, ...]]:
    """Return the model's probability of each labelled token, by sequence."""
    batch = collate([(one,) for one in sequences], range(len(sequences)), device)
    found_BT = label_log_probs(logits_of(model, batch), batch.labels_BT).exp()
    labelled_BT = batch.labels_BT >= 0
    return [tuple(found_BT[row][labelled_BT[row]].tolist()) for row in range(len(sequences))]
