"""An objective: what a learning step minimises, declared as a frozen struct whose fields are its settings.

The trainer in `surgeon/backend` reads the data, runs the model and hands an objective what it has seen; an objective is
mathematics alone. Torch appears in annotations only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import msgspec

from surgeon.core.recipe.problems import validation_text
from surgeon.core.registry import classes_of
from surgeon.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

Rows = Literal["text", "answers", "pairs", "rejected"]
"""What an example is: packed text, a prompt with its answer, with a chosen and a rejected one, or with a wrong one."""


class ObjectiveInputs(Protocol):
    """One batch and what the model made of it. B sequences, T tokens, V words of the vocabulary.

    Where examples are pairs, the first half of the sequences are the chosen ones, the second half the rejected ones in
    the same order. Position t is labelled with the token that follows it, or -1 where none counts.
    """

    @property
    def labels_BT(self) -> Tensor:
        """Labels, int64; -1 where none counts."""
        ...

    @property
    def weights_BT(self) -> Tensor | None:
        """Weights of the labels, float32, where the data give them."""
        ...

    @property
    def logits_BTV(self) -> Tensor:
        """The model's logits, in the dtype it computes in."""
        ...

    @property
    def log_probs_BT(self) -> Tensor:
        """Log-probabilities of the labels under the model, float32; 0 where none counts."""
        ...

    @property
    def reference_BT(self) -> Tensor:
        """The same under the model as it was when the step began; without gradient."""
        ...

    @property
    def teacher_BTV(self) -> Tensor:
        """The logits of the recipe's base model; without gradient."""
        ...


def mean_nll(seen: ObjectiveInputs) -> Tensor:
    """Return the mean negative log-likelihood of all labels of a batch, in nats, with gradient."""
    return -seen.log_probs_BT.sum() / (seen.labels_BT >= 0).sum()


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every objective declares. Subclasses live one per file in `surgeon/learning/`.

    name: as in recipes.   summary: one line for help and tables.   paper: where it comes from, if anywhere.
    rows: what its examples are.   reference, teacher: whether it looks at that model too.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    rows: ClassVar[Rows]
    reference: ClassVar[bool] = False
    teacher: ClassVar[bool] = False

    def loss(self, seen: ObjectiveInputs) -> Tensor:
        """Return the loss of one batch, a scalar with gradient: the mean over labels or over examples."""
        raise NotImplementedError

    def figures(self, seen: ObjectiveInputs) -> dict[str, float]:
        """Return further figures of one batch that a person wants to watch, such as an accuracy."""
        del seen
        return {}

    def weight(self, seen: ObjectiveInputs) -> float:
        """Return what a batch weighs beside others: how many things its loss is the mean over; here, labels.

        Parts of a batch weighed by it come to the loss of the whole batch. Reads labels and their weights alone.
        """
        return float((seen.labels_BT >= 0).sum())

    @property
    def token_rewards(self) -> str | None:
        """The model that is to give a reward for each token of a wrong answer, where one is named."""
        return None

    def remark(self, *, weighted: bool) -> str:
        """Return what a person must know of such a training, if anything; `weighted` says that labels have weights."""
        del weighted
        return ""


def objectives() -> dict[str, type[Objective]]:
    """Return every objective by name."""
    return classes_of("surgeon.objectives", Objective)


class ObjectiveChoice:
    """An objective as a step names it: `dpo`, or `{dpo: {beta: 0.1}}`. `raw` is what was written.

    No struct: msgspec would decode one by its fields, and this one begins with a name.
    """

    __slots__ = ("objective", "raw")

    def __init__(self, objective: Objective, raw: Any) -> None:
        self.objective, self.raw = objective, raw

    def __repr__(self) -> str:
        return f"ObjectiveChoice({self.raw!r})"

    def __eq__(self, other: object) -> bool:
        """Compare by meaning, not by spelling."""
        return isinstance(other, ObjectiveChoice) and self.plain == other.plain

    def __hash__(self) -> int:
        """Hash by meaning."""
        return hash(msgspec.json.encode(self.plain))

    @property
    def plain(self) -> Any:
        """Return it as `parse_objective` reads it, defaults left out."""
        settings = msgspec.to_builtins(self.objective)
        return {self.objective.name: settings} if settings else self.objective.name


def parse_objective(raw: Any) -> ObjectiveChoice:
    """Read `dpo`, or `{dpo: {beta: 0.1}}`.

    Raises:
        RecipeError: there is no such objective, or it has no such setting.
    """
    known = objectives()
    plain = {raw: {}} if isinstance(raw, str) else raw
    if not isinstance(plain, Mapping) or len(plain) != 1 or next(iter(plain)) not in known:
        raise RecipeError(f"{raw!r} is no objective", allowed=", ".join(known))
    ((name, settings),) = plain.items()
    try:
        return ObjectiveChoice(msgspec.convert(settings or {}, known[name]), raw)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(known[name]))
        raise RecipeError(f"{name}: {validation_text(error)}", allowed=fields or "no settings") from error
