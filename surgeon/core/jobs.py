"""What crosses the pipe between a front end and a worker: jobs down, events up, each a typed struct.

One JSON object per line in both directions. Tensors never cross. A job that ends sends exactly one `JobResult` or
`JobFailed`; everything before it is progress or a score that has just become known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from surgeon.errors import Cancelled, WorkerError

PROTOCOL = 2

Plain = dict[str, Any]
"""Plain data, as JSON has it."""
Proof = dict[str, dict[str, Any]]
"""By check: whether it `passed`, and the `detail` of what was seen."""


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="job"):
    """What every job says. `root`: the directory that data files are relative to; `device`, `dtype`: torch's names."""

    root: str = "."
    device: str | None = None
    dtype: str | None = None


class RecipeJob(Job, frozen=True, kw_only=True):
    """A job on the model after a recipe (see `recipe_to_builtins`), and how scores are measured on the way.

    data: a text file, a data set, or None for the built-in text.   sequences x length: tokens of it.
    stream: leave layers on disk, one in memory at a time; None decides by what is free.
    batch_tokens: where the search for a batch size starts; None for what suits the device.
    """

    recipe: Plain
    data: str | None = None
    sequences: int = 12
    length: int = 256
    seed: int = 0
    stream: bool | None = None
    batch_tokens: int | None = None


class ScoreJob(RecipeJob, frozen=True, kw_only=True, tag="score"):
    """Measure scores; `names` as they are requested in text."""

    names: tuple[str, ...]


class AblateJob(RecipeJob, frozen=True, kw_only=True, tag="ablate"):
    """Measure the loss without each decile of the singular values of all matrices of each role."""

    roles: tuple[str, ...]


class LearnJob(RecipeJob, frozen=True, kw_only=True, tag="learn"):
    """Carry out the learning steps of a recipe."""


class RunJob(RecipeJob, frozen=True, kw_only=True, tag="run"):
    """Replay a recipe and export the model to the new directory `out`; None where it only evaluates."""

    out: str | None = None
    verify: bool = True


class VerifyJob(Job, frozen=True, kw_only=True, tag="verify"):
    """Check an export; `base` replaces the base that its recipe names."""

    directory: str
    base: str | None = None


class DemoJob(Job, frozen=True, kw_only=True, tag="demo"):
    """Fetch the demo model."""


class CancelJob(Job, frozen=True, kw_only=True, tag="cancel"):
    """Cancel all jobs that have been sent."""


AnyJob = ScoreJob | AblateJob | LearnJob | RunJob | VerifyJob | DemoJob | CancelJob


class JobRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job as it is sent. `revision` is the draft's revision when it was asked, echoed in every event."""

    id: int
    job: AnyJob
    revision: int = 0


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request whose job has not been read yet, so that what is wrong with the job can be told under its id."""

    id: int
    job: msgspec.Raw
    revision: int = 0


class RequestError(WorkerError):
    """A line that asks for no job; `id` is 0 where it does not even say which."""

    def __init__(self, request_id: int, fault: str) -> None:
        self.id = request_id
        names = ", ".join(str(job.__struct_config__.tag) for job in AnyJob.__args__)
        super().__init__(
            f"not understood: {fault}", where="worker", allowed=f'{{"id", "job", "revision"}}; jobs: {names}'
        )


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
    see `surgeon.core.training_events`. JSON has no word for what is not finite: it arrives as None.
    """

    done: int
    total: int
    unit: str
    what: str
    figures: dict[str, float | None] = {}


class LayerScored(EventBody, frozen=True, kw_only=True, tag="scored"):
    """One layer of one score. `error` is a standard error; `matrices` the scores of its matrices by name within it."""

    score: str
    layer: str
    value: float
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


class _Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="of"):
    """What a job came to."""


class ScoreResult(_Result, frozen=True, kw_only=True, tag="score"):
    """Scores, as plain data of `Score`."""

    scores: list[Plain]


class AblateResult(_Result, frozen=True, kw_only=True, tag="ablate"):
    """Ablations, as plain data."""

    ablations: Plain


class LearnResult(_Result, frozen=True, kw_only=True, tag="learn"):
    """The recipe with what was learned resolved, and the reports of the learning steps by address."""

    recipe: Plain
    reports: dict[str, Plain]


class RunResult(_Result, frozen=True, kw_only=True, tag="run"):
    """What was written, the recipe with everything resolved, its proof and its evaluations."""

    out: str | None
    parameters: int
    bytes: int
    recipe: Plain
    proof: Proof | None
    evaluations: list[Plain]


class VerifyResult(_Result, frozen=True, kw_only=True, tag="verify"):
    """The checks that were made."""

    proof: Proof


class DemoResult(_Result, frozen=True, kw_only=True, tag="demo"):
    """The directory of the demo model."""

    path: str


AnyResult = ScoreResult | AblateResult | LearnResult | RunResult | VerifyResult | DemoResult
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


Emit = Callable[[AnyEvent], None]
IsCancelled = Callable[[], bool]


@dataclass(frozen=True)
class JobContext:
    """What every job needs and no job is about: who is told, whether to stop, where and on what it runs."""

    emit: Emit
    is_cancelled: IsCancelled
    root: Path = Path()
    device: str | None = None
    dtype: str | None = None

    def log(self, text: str) -> None:
        """Tell a line for the log."""
        self.emit(LogMessage(text=text))

    def warn(self, text: str) -> None:
        """Tell a warning."""
        self.emit(LogMessage(text=text, level="warning"))

    def progress(self, done: int, total: int, unit: str, what: str, figures: Mapping[str, float] | None = None) -> None:
        """Tell how far the job is."""
        self.emit(Progress(done=done, total=total, unit=unit, what=what, figures=dict(figures or {})))

    def stop_if_cancelled(self) -> None:
        """Raise Cancelled where a person has cancelled the job."""
        if self.is_cancelled():
            raise Cancelled


encode = msgspec.json.Encoder().encode
decode_event = msgspec.json.Decoder(Event).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_job = msgspec.json.Decoder(AnyJob).decode


def decode_request(line: bytes) -> JobRequest:
    """Return the job that a line asks for.

    Raises:
        RequestError: it is none; the error names the field, and the job's id where the line has one.
    """
    try:
        envelope = _decode_envelope(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(0, str(error)) from error
    try:
        return JobRequest(id=envelope.id, job=_decode_job(envelope.job), revision=envelope.revision)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(envelope.id, str(error).replace("`$", "`$.job")) from error
