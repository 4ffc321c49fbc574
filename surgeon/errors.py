"""Every error surgeon raises on purpose, and the sentence a person reads.

SurgeonError
├── UsageError            a command, option or key was used wrongly            exit 2
│   └── RecipeError       a recipe is malformed or asks for the impossible     exit 2
│       └── SelectionError  a selection of layers or roles does not fit        exit 2
├── CheckpointError       what lies on disk is missing, broken or unsafe       exit 1
├── ArchitectureError     a model cannot be operated on correctly: the field   exit 1
├── ExportError           the result could not be written                      exit 1
├── VerifyError           the result was written but is not what was asked     exit 1
├── DataError             calibration or training data is missing or broken    exit 1
├── ScoreError            a measurement failed or means nothing                exit 1
├── LearningError         a learning step failed                               exit 1
├── WorkerError           the worker process failed                            exit 1
├── GateError             a `require` step of a recipe is not met              exit 3
└── Cancelled             a person stopped it                                  exit 130
"""

from __future__ import annotations

from typing import ClassVar


class SurgeonError(Exception):
    """Says where, what, what is allowed, and what to do next.

    `where` and `what` make the first line; `allowed` and `hint` follow on their own lines when given.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", allowed: str = "", hint: str = "") -> None:
        self.where, self.what, self.allowed, self.hint = where, what, allowed, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        """Return the whole message, one to three lines."""
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str]:
        """Return the parts, for JSON output and for the worker's pipe."""
        return {
            "kind": type(self).__name__,
            "where": self.where,
            "what": self.what,
            "allowed": self.allowed,
            "hint": self.hint,
        }


class UsageError(SurgeonError):
    """A command, an option or a key was used wrongly."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is malformed, or asks for what the model at that step does not have."""


class SelectionError(RecipeError):
    """A selection of layers or roles does not fit the model at that step."""


class CheckpointError(SurgeonError):
    """What lies on disk is missing, broken or unsafe to read."""


class ArchitectureError(SurgeonError):
    """A model that cannot be operated on correctly; `where` names the config field or tensor."""


class ExportError(SurgeonError):
    """The result could not be written; nothing half-written stays."""


class VerifyError(SurgeonError):
    """The export was written, but reloading it did not prove it right."""


class DataError(SurgeonError):
    """Calibration or training data is missing, malformed or too small."""


class ScoreError(SurgeonError):
    """A measurement failed, or its inputs make it meaningless."""


class LearningError(SurgeonError):
    """A learning step failed: its loss is not finite, or it does not fit in memory."""


class WorkerError(SurgeonError):
    """The worker process could not start, crashed, or spoke nonsense."""


class GateError(SurgeonError):
    """A `require` step of the recipe is not met."""

    exit_code = 3


class Cancelled(SurgeonError):
    """A person stopped the job."""

    exit_code = 130

    def __init__(self, what: str = "cancelled", *, where: str = "", allowed: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, allowed=allowed, hint=hint)


def error_from_dict(parts: dict[str, str]) -> SurgeonError:
    """Rebuild an error that crossed the worker's pipe."""
    kinds: dict[str, type[SurgeonError]] = {kind.__name__: kind for kind in _all_kinds(SurgeonError)}
    kind = kinds.get(parts.get("kind", ""), WorkerError)
    return kind(
        parts.get("what", ""),
        where=parts.get("where", ""),
        allowed=parts.get("allowed", ""),
        hint=parts.get("hint", ""),
    )


def _all_kinds(kind: type[SurgeonError]) -> list[type[SurgeonError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _all_kinds(child))]
