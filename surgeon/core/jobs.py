"""What a front end asks of a worker: jobs, each a typed struct. What they come to is in `job_results`.

They cross the pipe as JSON, one object per line; tensors never do. What the worker says meanwhile is in `events`.
"""

from __future__ import annotations

import msgspec

from surgeon.core.job_results import Plain
from surgeon.errors import WorkerError

PROTOCOL = 3


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
    """Measure scores; `names` as they are requested in text. `weights_only` leaves trained adapters out."""

    names: tuple[str, ...]
    weights_only: bool = False


class AblateJob(RecipeJob, frozen=True, kw_only=True, tag="ablate"):
    """Measure the loss without each decile of the singular values of all matrices of each role.

    `weights_only` leaves trained adapters out.
    """

    roles: tuple[str, ...]
    weights_only: bool = False


class LearnJob(RecipeJob, frozen=True, kw_only=True, tag="learn"):
    """Carry out the learning steps of a recipe."""


class EvaluateJob(RecipeJob, frozen=True, kw_only=True, tag="evaluate"):
    """Carry out the evaluations and gates of a recipe from step `first` on; a gate that is not met stops nothing.

    The base is measured beside the model.
    """

    first: int = 0


class RunJob(RecipeJob, frozen=True, kw_only=True, tag="run"):
    """Replay a recipe and export the model to the new directory `out`; None where it only evaluates."""

    out: str | None = None
    verify: bool = True


class VerifyJob(Job, frozen=True, kw_only=True, tag="verify"):
    """Check an export; `base` replaces the base that its recipe names.

    trust_remote_code: whether code that export and base bring may be run, whatever the recipe in the export says.
    """

    directory: str
    base: str | None = None
    trust_remote_code: bool = False


class CheckJob(Job, frozen=True, kw_only=True, tag="check"):
    """Judge whether a model holds what the class that loads it expects."""

    model: str
    trust_remote_code: bool = False


class DemoJob(Job, frozen=True, kw_only=True, tag="demo"):
    """Fetch the demo model."""


class DataJob(Job, frozen=True, kw_only=True, tag="data"):
    """Tell how rows are read; with a model, of which tokens they are, and which of them an objective trains on.

    data: a file, a data set, or None for the built-in text.   objective: None for what suits the rows.
    shown: how many rows are told whole.   trust_remote_code: whether the model's tokenizer may be code that it brings.
    """

    data: str | None = None
    model: str | None = None
    objective: str | None = None
    shown: int = 3
    max_length: int = 512
    trust_remote_code: bool = False


class CalibrateJob(Job, frozen=True, kw_only=True, tag="calibrate"):
    """Measure how fast this machine calculates, copies and reads, and keep it in the cache directory."""


class CancelJob(Job, frozen=True, kw_only=True, tag="cancel"):
    """Cancel all jobs that have been sent."""


AnyJob = (
    ScoreJob
    | AblateJob
    | LearnJob
    | EvaluateJob
    | RunJob
    | VerifyJob
    | CheckJob
    | DemoJob
    | DataJob
    | CalibrateJob
    | CancelJob
)


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


encode = msgspec.json.Encoder().encode
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
