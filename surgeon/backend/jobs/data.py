"""The `data` job: how rows are read, of which tokens they are for a model, and which of them are trained on.

Torch is loaded only where a model is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.backend.data.dialogues import content_of
from surgeon.backend.data.row import Row
from surgeon.backend.data.rows import rows_of, unread_keys
from surgeon.backend.data.sources import Source, open_source
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.job_context import JobContext
from surgeon.core.job_results import DataResult, ShownRow, TrainedTokens
from surgeon.core.jobs import DataJob
from surgeon.core.recipe.objective import Objective, objectives
from surgeon.errors import DataError, SurgeonError, UsageError

if TYPE_CHECKING:
    from surgeon.backend.data.tokens import Tokens

_STREAMED = 1000
"""How many rows of a data set on the hub are looked at."""


def data_job(request: DataJob, job: JobContext) -> DataResult:
    """Perform a `data` job.

    Raises:
        DataError: the data cannot be read, or the model's chat template refuses a row.
    """
    source = open_source(request.data, job.root)
    limit = _STREAMED if source.streamed else None
    rows = list(rows_of(source, limit))
    forms = dict(Counter(row.form for row in rows))
    whole = limit is None or len(rows) < limit
    if request.model is None:
        shown = [ShownRow(where=row.where, pieces=_untold(row)) for row in rows[: request.shown]]
        return DataResult(
            format=source.format, rows=len(rows), whole=whole, forms=forms, unread=dict(unread_keys(rows)), shown=shown
        )
    return _tokenised(request, source, rows, whole, job)


def _untold(row: Row) -> list[tuple[str, bool | None]]:
    if row.text is not None:
        return [(row.text, None)]
    lines: list[tuple[str, bool | None]] = [(f"{one['role']}: {_said(one)}\n", None) for one in row.messages]
    if row.right is not None and row.wrong is not None:
        lines.append((f"rejected: {_said(row.wrong)}\n", None))
    return lines


def _said(message: Any) -> str:
    more = [f"{key}={value}" for key, value in message.items() if key not in ("role", "content")]
    return " ".join(filter(None, [content_of(message), *more]))


def _tokenised(request: DataJob, source: Source, rows: list[Row], whole: bool, job: JobContext) -> DataResult:
    from surgeon.backend.data.examples import examples_of
    from surgeon.backend.model.loading import load_tokenizer

    place = _model(str(request.model), job.root)
    tokenizer = load_tokenizer(place, trust_remote_code=request.trust_remote_code)
    objective = _objective(request.objective, rows)
    examples, left_out = examples_of(rows, tokenizer, objective.rows, request.max_length)
    sequences = [one for example in examples for one in example]
    _warn_of_unreadable(place, sequences, request, job)
    trained = TrainedTokens(
        objective=objective.name, sequences=len(sequences), tokens=sum(len(one.tokens) for one in sequences),
        longest=max((len(one.tokens) for one in sequences), default=0), left_out=left_out,
        trained=sum(label >= 0 for one in sequences for label in one.labels),
    )  # fmt: skip
    shown = [
        ShownRow(where=one.where_of(0) or source.name, pieces=_pieces(one, tokenizer))
        for example in examples[: request.shown]
        for one in example
    ]
    return DataResult(
        format=source.format, rows=len(rows), whole=whole, forms=dict(Counter(row.form for row in rows)),
        unread=dict(unread_keys(rows, tokenizer)), shown=shown, trained=trained,
    )  # fmt: skip


def _warn_of_unreadable(place: Path, sequences: Sequence[Tokens], request: DataJob, job: JobContext) -> None:
    """Warn of what training would refuse; a directory may also hold a tokenizer alone."""
    from surgeon.backend.model.input_limits import refuse_unreadable
    from surgeon.backend.model.loading import meta_model

    try:
        model = meta_model(open_checkpoint(place, trust_remote_code=request.trust_remote_code))
    except SurgeonError:
        return
    try:
        refuse_unreadable(model, sequences, request.data or "data", "max_length")
    except DataError as error:
        job.warn(f"training would refuse {error.where}: {error.what}")


def _model(name: str, root: Path) -> Path:
    return root / name if (root / name).is_dir() else locate_model(name)


def _objective(name: str | None, rows: Sequence[Row]) -> type[Objective]:
    """Return the objective that is named, or the one that suits all rows."""
    known = objectives()
    if name is not None and name not in known:
        raise UsageError(f"{name!r} is no objective", where="--objective", allowed=", ".join(known))
    right, wrong = all(row.right is not None for row in rows), all(row.wrong is not None for row in rows)
    suits = "dpo" if right and wrong else "sft" if right else "npo" if wrong else "lm"
    return known[name or suits]


def _pieces(one: Tokens, tokenizer: Any) -> list[tuple[str, bool | None]]:
    """Return a sequence's text in pieces that are trained on, or not."""
    marked = zip(one.tokens, [False, *(label >= 0 for label in one.labels[:-1])], strict=True)
    return [
        (tokenizer.decode([token for token, _ in part], clean_up_tokenization_spaces=False), is_trained)
        for is_trained, part in groupby(marked, key=lambda pair: pair[1])
    ]
