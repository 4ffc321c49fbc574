"""What a worker says to a front end: events, each a typed struct; one JSON object per line.

A job that ends sends exactly one `JobResult` or `JobFailed`; everything before it is progress or a score that has just
become known.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import msgspec

from surgeon.core.job_results import AnyResult, Plain
from surgeon.errors import WorkerError


class EventBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"):
    """What happened."""


class Hello(EventBody, frozen=True, kw_only=True, tag="hello"):
    """The first event of a worker."""

    protocol: int
    version: str
    pid: int


class Acknowledged(EventBody, frozen=True, kw_only=True, tag="ack"):
    """A job has begun."""


class Progress(EventBody, frozen=True, kw_only=True, tag="progress"):
    """How far a job is; `unit` is "layers", "bytes", "tokens" and the like.

    figures: of a training step `loss`, `tokens_per_second`, `eta_seconds`, `held_out_…` and what its objective adds;
    see `surgeon.core.training_figures`. JSON has no word for what is not finite: it arrives as None.
    """

    done: int
    total: int
    unit: str
    what: str
    figures: dict[str, float | None] = {}


class LayerScored(EventBody, frozen=True, kw_only=True, tag="scored"):
    """One layer of one score. `error` is a standard error; `matrices` the scores of its matrices by name within it.

    value: None where it could not be measured.
    """

    score: str
    layer: str
    value: float | None
    error: float | None = None
    matrices: dict[str, float] | None = None


class DecileAblated(EventBody, frozen=True, kw_only=True, tag="ablated"):
    """One row of an `ablate` job, as in its result."""

    ablation: Plain


class Evaluated(EventBody, frozen=True, kw_only=True, tag="evaluated"):
    """What an evaluation at a step came to: an `EvaluationResult` as plain data; what is not finite is None."""

    evaluation: Plain


class JobResult(EventBody, frozen=True, kw_only=True, tag="result"):
    """A job has ended: what it came to, job by job."""

    result: AnyResult


class JobFailed(EventBody, frozen=True, kw_only=True, tag="error"):
    """A job has failed: the parts of its error, see `SurgeonError.to_dict`."""

    error: dict[str, str]


class Statistics(EventBody, frozen=True, kw_only=True, tag="stat"):
    """What the worker uses while a job runs."""

    rss_bytes: int
    device_bytes: int
    threads: int


class LogMessage(EventBody, frozen=True, kw_only=True, tag="log"):
    """A line for the log."""

    text: str
    level: Literal["info", "warning", "error"] = "info"


AnyEvent = (
    Hello
    | Acknowledged
    | Progress
    | LayerScored
    | DecileAblated
    | Evaluated
    | JobResult
    | JobFailed
    | Statistics
    | LogMessage
)


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that happened, and the job that it happened in; 0 for none."""

    id: int
    body: AnyEvent
    revision: int = 0


decode_event = msgspec.json.Decoder(Event).decode


class _Greeting(msgspec.Struct):
    """The greeting of any protocol, of which only `protocol` is sure."""

    body: dict[str, Any]


def read_event(line: bytes) -> Event:
    """Return the event in a line; one that holds none, such as a library's own output, becomes a warning.

    Raises:
        WorkerError: it is an event, but not one of this protocol; the message names the field.
    """
    try:
        return decode_event(line)
    except msgspec.MsgspecError as error:
        with contextlib.suppress(msgspec.MsgspecError):
            body = msgspec.json.decode(line, type=_Greeting).body
            if "protocol" in body:
                protocol = body["protocol"] if isinstance(body["protocol"], int) else 0
                return Event(id=0, body=Hello(protocol=protocol, version=str(body.get("version", "?")), pid=0))
        if line.startswith(b'{"id":'):
            raise WorkerError(f"sent an event that is not understood: {error}", where="worker") from error
        return Event(id=0, body=LogMessage(level="warning", text=line.decode(errors="replace").rstrip()))
