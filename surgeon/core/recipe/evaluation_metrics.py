"""What an evaluation measures on a model, and the figures that its raw numbers come to. Arithmetic on numbers alone.

perplexity, nll (nats per token), bits_per_byte   all tokens of running text; bits per byte compare across tokenizers
response_perplexity, nll                          the tokens of responses alone, given what was asked
multiple_choice, multiple_choice_normalised       the likeliest choice by its whole log-likelihood, and by that per byte
exact_match                                       greedy answers that equal the response, white space around both apart
preference, preference_margin                     log-likelihood of the chosen against the rejected answer; ties: half
reward_accuracy, reward_margin                    the same less the base model's, times beta: DPO's implicit rewards
kl, top1_agreement                                all tokens of running text: KL divergence of the base's next-token
                                                  distribution from this model's, nats per token; and how often both
                                                  rate the same token highest
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from surgeon.core.scoring.score import Average, average

Metric = Literal[
    "perplexity",
    "bits_per_byte",
    "response_perplexity",
    "multiple_choice",
    "exact_match",
    "preference",
    "kl",
    "lm_eval",
]
Kind = Literal["text", "responses", "choices", "answers", "pairs", "divergence", "tasks"]
Positive = Annotated[int, msgspec.Meta(ge=1)]

KINDS: Mapping[str, Kind] = {
    "perplexity": "text", "bits_per_byte": "text", "response_perplexity": "responses", "multiple_choice": "choices",
    "multiple_choice_normalised": "choices", "exact_match": "answers", "preference": "pairs",
    "preference_margin": "pairs", "reward_accuracy": "pairs", "reward_margin": "pairs", "kl": "divergence",
    "top1_agreement": "divergence", "lm_eval": "tasks",
}  # fmt: skip
"""What has to be run for a metric or a figure."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to measure. Only what changes the numbers is in it, but for the name of the data.

    data: as the recipe names it.   rows: at most so many of its rows.   beta: of DPO's implicit rewards.
    """

    kind: Kind
    data: str | None = None
    max_length: int = 512
    rows: int | None = None
    max_new_tokens: int = 64
    beta: float = 0.1
    tasks: tuple[str, ...] = ()


class RawResults(msgspec.Struct, frozen=True, kw_only=True):
    """What a model gave, example by example.

    values: text, responses: [nats]; choices: the log-likelihood of each; answers: [1 or 0]; pairs: [chosen, rejected];
    divergence: [nats, tokens on which both agree].
    sizes: text, responses, divergence: [tokens]; choices: the UTF-8 bytes of each.   answers: the right choices.
    nbytes: of all text.
    figures: what another program has averaged already.
    """

    values: list[list[float]] = []
    sizes: list[list[int]] = []
    answers: list[int] = []
    nbytes: int = 0
    figures: dict[str, Average] = {}


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an evaluation at a step came to.

    base: the base model's figures, where they were asked for.   bounds: what was required, by figure.
    unmet: the required figures that are out of their bounds, and how.
    """

    step: int
    name: str
    metric: str
    data: str | None = None
    examples: int = 0
    figures: dict[str, Average] = {}
    base: dict[str, Average] = {}
    bounds: dict[str, str] = {}
    unmet: dict[str, str] = {}


def figures_of(measure: Measure, raw: RawResults, base: RawResults | None) -> dict[str, Average]:
    """Return the averages with their standard errors; `base` is what the base model gave on the same pairs."""
    if measure.kind == "pairs":
        assert base is not None, "rewards are told against the base"
        return _pairs(raw, base, measure.beta)
    return _FIGURES[measure.kind](raw)


def _responses(raw: RawResults) -> dict[str, Average]:
    text = _text(raw)
    return {"nll": text["nll"], "response_perplexity": text["perplexity"]}


def _answers(raw: RawResults) -> dict[str, Average]:
    return {"exact_match": average([value for (value,) in raw.values])}


def _divergence(raw: RawResults) -> dict[str, Average]:
    sizes = [size for (size,) in raw.sizes]
    kl, same = zip(*raw.values, strict=True)
    return {"kl": _ratio(kl, sizes), "top1_agreement": _ratio(same, sizes)}


def _tasks(raw: RawResults) -> dict[str, Average]:
    return dict(raw.figures)


def _text(raw: RawResults) -> dict[str, Average]:
    """Ratios of sums over windows; their errors by linearisation (delta method)."""
    sizes = [size for (size,) in raw.sizes]
    tokens = sum(sizes)
    loss = _ratio([value for (value,) in raw.values], sizes)
    nll, error = loss.value, loss.error
    bits = tokens / (math.log(2) * raw.nbytes) if raw.nbytes else math.nan
    try:
        perplexity = math.exp(nll)
    except OverflowError:
        perplexity = math.inf
    return {
        "nll": Average(nll, error),
        "perplexity": Average(perplexity, _times(error, perplexity)),
        "bits_per_byte": Average(nll * bits, _times(error, bits)),
    }


def _ratio(values: Sequence[float], sizes: Sequence[int]) -> Average:
    """Return the ratio of two sums over windows, its error by linearisation (delta method)."""
    total, count = sum(sizes), len(values)
    ratio = math.fsum(values) / total
    if count < 2:
        return Average(ratio)
    residues = (value - ratio * size for value, size in zip(values, sizes, strict=True))
    return Average(ratio, math.sqrt(count / (count - 1) * math.fsum(residue**2 for residue in residues)) / total)


def _choices(raw: RawResults) -> dict[str, Average]:
    by_byte = [[value / size for value, size in zip(values, sizes, strict=True)]
               for values, sizes in zip(raw.values, raw.sizes, strict=True)]  # fmt: skip
    return {
        "multiple_choice": average(_hits(raw.values, raw.answers)),
        "multiple_choice_normalised": average(_hits(by_byte, raw.answers)),
    }


def _hits(values: Sequence[Sequence[float]], answers: Sequence[int]) -> list[float]:
    """Return whether each question's likeliest choice is the right one; of equal ones the first counts."""
    return [
        math.nan if any(map(math.isnan, row)) else float(row.index(max(row)) == answer)
        for row, answer in zip(map(list, values), answers, strict=True)
    ]


def _pairs(raw: RawResults, base: RawResults, beta: float) -> dict[str, Average]:
    margins = [chosen - rejected for chosen, rejected in raw.values]
    rewards = [
        beta * (margin - (chosen - rejected))
        for margin, (chosen, rejected) in zip(margins, base.values, strict=True)
    ]  # fmt: skip
    return {
        "preference": average(list(map(_won, margins))),
        "preference_margin": average(margins),
        "reward_accuracy": average(list(map(_won, rewards))),
        "reward_margin": average(rewards),
    }


def _won(margin: float) -> float:
    """Return 1 where the chosen answer is ahead, 0 where it is behind; a tie is a half, as while training with DPO."""
    return math.nan if math.isnan(margin) else (margin > 0) + 0.5 * (margin == 0)


def _times(error: float | None, factor: float) -> float | None:
    return None if error is None else error * factor


_FIGURES: Mapping[Kind, Callable[[RawResults], dict[str, Average]]] = {
    "text": _text, "responses": _responses, "choices": _choices, "answers": _answers, "divergence": _divergence,
    "tasks": _tasks,
}  # fmt: skip


def evaluations_to_builtins(results: Sequence[EvaluationResult]) -> list[dict[str, Any]]:
    """Return results as plain data, in the order of their steps."""
    return [msgspec.to_builtins(result) for result in results]
