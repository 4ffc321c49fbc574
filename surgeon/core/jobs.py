"""What crosses the pipe between a front end and a worker: jobs down, events up.

One JSON object per line in both directions. Tensors never cross. A job that ends sends exactly one `result`
or `error`; everything before it is narration or a score that has just become known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

PROTOCOL = 1

Kind = Literal["hello", "ack", "progress", "scored", "evaluated", "result", "error", "stat", "log"]


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to do. `revision` is the draft's revision when it was asked, echoed in every event."""

    id: int
    job: str
    args: dict[str, Any] = {}
    revision: int = 0


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened.

    `body` by kind:
        hello     {protocol, version, pid, device}
        ack       {}
        progress  {done, total, unit, what}    unit is "layers", "bytes", "tokens", …; of a training step also
                  {loss, tokens_per_second, eta_seconds, held_out_…, further figures}, see `core.watching`
        scored    {score, layer, value, error, matrices}    one layer of one score; error is a standard error or None
        evaluated {step, name, metric, data, examples, figures}    see `surgeon.core.recipe.evaluation.EvaluationResult`
        result    the job's answer, job by job
        error     SurgeonError.to_dict()
        stat      {rss_bytes, device_bytes, threads}
        log       {level, text}
    """

    id: int
    event: Kind
    body: dict[str, Any] = {}
    revision: int = 0


Emit = Callable[[Kind, dict[str, Any]], None]
IsCancelled = Callable[[], bool]

encode = msgspec.json.Encoder().encode
decode_job = msgspec.json.Decoder(Job).decode
decode_event = msgspec.json.Decoder(Event).decode
