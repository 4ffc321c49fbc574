"""What a front end asks of a worker, and what it comes to: jobs and their results, each a typed struct.

They cross the pipe as JSON, one object per line; tensors never do. What the worker says meanwhile is in `events`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from surgeon.errors import WorkerError

PROTOCOL = 3

Plain = dict[str, Any]
"""Plain data, as JSON has it."""
Proof = dict[str, dict[str, Any]]
"""By check: whether it `passed`, None where that is not proved, and the `detail` of what was seen."""


def not_proved(proof: Proof) -> list[str]:
    """Return the names of the checks that could not be made."""
    return [name for name, check in proof.items() if check["passed"] is None]


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


class EvaluateResult(_Result, frozen=True, kw_only=True, tag="evaluate"):
    """Evaluations as plain data of `EvaluationResult`, and the recipe with what was learned resolved."""

    recipe: Plain
    evaluations: list[Plain]


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


class CheckResult(_Result, frozen=True, kw_only=True, tag="check"):
    """The judgement, as plain data of `Fit`, and the same in a sentence; `whole`: the model fits."""

    fit: Plain
    text: str
    whole: bool


class DemoResult(_Result, frozen=True, kw_only=True, tag="demo"):
    """The directory of the demo model."""

    path: str


class ShownRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row, told whole: pieces of text, and whether each is trained on; None where no model was named."""

    where: str
    pieces: list[tuple[str, bool | None]]


class TrainedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What an objective makes of rows: sequences, their tokens, the longest, how many are trained on.

    left_out: rows without an answer within the length.
    """

    objective: str
    sequences: int
    tokens: int
    longest: int
    trained: int
    left_out: int


class DataResult(_Result, frozen=True, kw_only=True, tag="data"):
    """How rows are read: the form of the file, rows by their form, keys that nothing reads, some rows whole.

    whole: whether all rows were read, and not the first ones of a data set on the hub.
    """

    format: str
    rows: int
    whole: bool
    forms: dict[str, int]
    unread: dict[str, int]
    shown: list[ShownRow]
    trained: TrainedTokens | None = None


class CalibrateResult(_Result, frozen=True, kw_only=True, tag="calibrate"):
    """The rates, as plain data of `Machine`."""

    machine: Plain


AnyResult = (
    ScoreResult
    | AblateResult
    | LearnResult
    | EvaluateResult
    | RunResult
    | VerifyResult
    | CheckResult
    | DemoResult
    | DataResult
    | CalibrateResult
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
