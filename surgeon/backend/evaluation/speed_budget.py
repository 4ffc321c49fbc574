"""How many layers go until a model decodes as fast as a budget says: measured on this machine, not counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgeon.backend.data.tokens import Tokens
from surgeon.backend.device import choose_device, choose_dtype
from surgeon.backend.evaluation.items import read_items
from surgeon.backend.evaluation.live_model import live_model
from surgeon.backend.evaluation.speed import prompt_of, require_own_speed, speed
from surgeon.backend.model.input_limits import refuse_unreadable
from surgeon.backend.model.loading import load_tokenizer
from surgeon.backend.model.losses import IGNORED
from surgeon.core.job_context import JobContext
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.evaluation_metrics import Measure, RawResults
from surgeon.core.scoring.score import Average, Score, average
from surgeon.core.selection.budget import parse_budget
from surgeon.core.selection.budget_layers import fewest, removal_order, without
from surgeon.core.selection.selection import Ranked

_MEASURE = Measure(kind="speed", max_length=32, max_new_tokens=24, rounds=5)


def layers_for_speed(
    term: Ranked, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score], seed: int, job: JobContext
) -> tuple[int, ...]:
    """Return the fewest lowest layers without which decoding was as fast as the budget says, and tell the margin.

    What is compared is the mean over rounds; a budget of `1.3x` is of the model at this step, measured beside it.

    Raises:
        SelectionError: it is met already, or cannot be.   ScoreError: the model does not fit in memory.
    """
    budget = parse_budget(term.count)
    order = removal_order(term, draft, stack, scores)
    rates = _Rates(draft, stack, seed, job)

    def rate(gone: Sequence[int]) -> Average:
        return rates.speedup(gone) if budget.relative else rates.tokens_per_second(gone)

    def found(gone: Sequence[int]) -> str:
        one, unit = rate(gone), "x" if budget.relative else " tokens per second"
        spread = f" ± {one.error:.2g}" if one.error is not None else ""
        return f"{one.value:.3g}{unit}{spread} of at least {budget.amount:.3g}{unit} without {len(gone)} layers"

    def met(gone: Sequence[int]) -> bool:
        return rate(gone).value >= budget.amount

    chosen = fewest(order, met, found, len(draft.layers(stack)), alike=True)
    job.log(f"{term.count}: {found(chosen)}, on {rates.measured_on}")
    return chosen


class _Rates:
    """How fast a draft decodes without some of its layers; each set is measured once."""

    def __init__(self, draft: Draft, stack: str | None, seed: int, job: JobContext) -> None:
        self._draft, self._stack, self._seed, self._job = draft, stack, seed, job
        checkpoint = draft.structure.checkpoint
        self._device = choose_device(job.device)
        self._dtype = choose_dtype(job.dtype, self._device)
        require_own_speed(draft, self._dtype, self._device, "tokens_per_second")
        items = read_items(_MEASURE, None, job.root, load_tokenizer(checkpoint.path))
        self._prompt = prompt_of(items, _MEASURE.max_length)
        self._known: dict[frozenset[int], RawResults] = {}
        self.measured_on = ""

    def speedup(self, gone: Sequence[int]) -> Average:
        """Return how many times as fast as the draft it is; both are measured beside the base, round by round."""
        before = [base / own for _, own, _, base in self._measured(()).values]
        after = [base / own for _, own, _, base in self._measured(gone).values]
        return average([one / other for one, other in zip(after, before, strict=True)]) if gone else Average(1.0)

    def tokens_per_second(self, gone: Sequence[int]) -> Average:
        """Return the rate of decoding."""
        raw = self._measured(gone)
        return average([raw.sizes[0][1] / own for _, own, _, _ in raw.values])

    def _measured(self, gone: Sequence[int]) -> RawResults:
        name = frozenset(gone)
        if name not in self._known:
            draft = without(self._draft, self._stack, gone)
            asked = [Tokens(self._prompt, [IGNORED] * len(self._prompt))]
            with live_model(draft, self._dtype, self._device, self._seed, self._job) as live:
                refuse_unreadable(live.model, asked, "the built-in text", "model", _MEASURE.max_new_tokens - 1)
                raw = speed(
                    live.model, live.as_base, self._prompt, _MEASURE.max_new_tokens, _MEASURE.rounds, self._tell,
                    memory=False,
                )  # fmt: skip
            self._known[name], self.measured_on = raw, raw.measured_on
        return self._known[name]

    def _tell(self, done: int) -> None:
        self._job.stop_if_cancelled()
        self._job.progress(done, _MEASURE.rounds, "rounds", "measuring speed")
