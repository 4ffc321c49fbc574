"""What jobs come to: results, each a typed struct, as a worker sends them."""

from __future__ import annotations

from typing import Any

import msgspec

Plain = dict[str, Any]
"""Plain data, as JSON has it."""


Proof = dict[str, dict[str, Any]]
"""By check: whether it `passed`, None where that is not proved, and the `detail` of what was seen."""


def not_proved(proof: Proof) -> list[str]:
    """Return the names of the checks that could not be made."""
    return [name for name, check in proof.items() if check["passed"] is None]


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
    """What was written, the recipe with everything resolved, its proof, its evaluations, what searches have tried."""

    out: str | None
    parameters: int
    bytes: int
    recipe: Plain
    proof: Proof | None
    evaluations: list[Plain]
    searches: list[Plain] = []


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
