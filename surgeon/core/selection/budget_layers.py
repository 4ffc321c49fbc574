"""Which layers go for a budget: those that a score ranks lowest, as many as it takes, counted from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.kv_cache import kv_cache
from surgeon.core.plan.plan import compile_plan
from surgeon.core.scoring.score import Score
from surgeon.core.selection.budget import Budget, parse_budget
from surgeon.core.selection.ranking import extreme_layers
from surgeon.core.selection.selection import Ranked, Selection
from surgeon.errors import SelectionError

Met = Callable[[Sequence[int]], bool]
"""Whether the budget is met without the layers at some positions."""


def budget_term(selection: Selection) -> Ranked | None:
    """Return the part of a selection that is a budget, where it is one."""
    (first, *rest) = selection.terms or (None,)
    return first if isinstance(first, Ranked) and first.order == "until" and not rest else None


def measured_budget(selection: Selection) -> bool:
    """Whether a selection is a budget that only a measurement can meet."""
    term = budget_term(selection)
    return term is not None and parse_budget(term.count).measured


def chosen_layers(
    selection: Selection, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score]
) -> tuple[int, ...]:
    """Return the positions that a selection comes to, where it is a budget too.

    Raises:
        SelectionError: as `Selection.positions` does; or a budget cannot be met, is met already, or must be measured.
    """
    term = budget_term(selection)
    if term is None:
        return selection.positions(draft.layers(stack), scores)
    order = removal_order(term, draft, stack, scores)
    budget = parse_budget(term.count)
    if budget.measured:
        raise SelectionError(f"{term.count} has to be measured", hint="run the recipe, which measures it")
    most = limit_of(budget, draft, stack)

    def met(gone: Sequence[int]) -> bool:
        return size_of(budget, without(draft, stack, gone), stack) <= most

    return fewest(order, met, lambda gone: _found(budget, draft, stack, gone), len(draft.layers(stack)))


def removal_order(
    term: Ranked, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score]
) -> Sequence[int]:  # fmt: skip
    """Return the positions that may go, the least important first.

    Raises:
        SelectionError: the score is not there.
    """
    layers = draft.layers(stack)
    if term not in scores:
        raise SelectionError(f"{term.by} has not been measured here", hint="run the recipe where it can be measured")
    protected = {position for part in term.protect for position in part.positions(layers, scores)}
    return extreme_layers("lowest", str(len(layers) - len(protected)), scores[term], layers, protected)


def fewest(
    order: Sequence[int], met: Met, found: Callable[[Sequence[int]], str], layers: int, *, alike: bool = False
) -> tuple[int, ...]:
    """Return the fewest first positions of an order without which a budget is met; none of them could stay.

    `found` says what is there without some layers. Layers that are `alike` are not tried one by one.

    Raises:
        SelectionError: it is met by nothing, or by all of them not.
    """
    if met(()):
        raise SelectionError(f"the model meets it as it is: {found(())}", hint="leave the step out, or ask for less")
    most = min(len(order), layers - 1)
    if not met(order[:most]):
        raise SelectionError(
            f"cannot be met: without {most} of {layers} layers there are {found(order[:most])}",
            allowed="at least one layer must stay", hint="ask for more, or protect fewer layers",
        )  # fmt: skip
    low, high = 0, most  # not met without `low`, met without `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(order[:middle]) else (middle, high)
    gone = list(order[:high])
    for position in () if alike else reversed(order[: high - 1]):  # a large last one may let smaller ones stay
        rest = [one for one in gone if one != position]
        gone = rest if met(rest) else gone
    return tuple(sorted(gone))


def without(draft: Draft, stack: str | None, gone: Sequence[int]) -> Draft:
    """Return a draft without the layers at some positions."""
    layers = draft.layers(stack)
    return draft.with_layers(tuple(layer for at, layer in enumerate(layers) if at not in set(gone)), stack)


def size_of(budget: Budget, draft: Draft, stack: str | None) -> float:
    """Return what a draft comes to, in the units of a budget that headers tell.

    Raises:
        SelectionError: the KV cache is not known.
    """
    plan = compile_plan(draft)
    if budget.kind == "parameters":
        return plan.parameters
    if budget.kind == "bytes":
        return plan.nbytes
    if len(draft.stacks) > 1:
        raise SelectionError(
            f"the KV cache of {len(draft.stacks)} stacks of layers is not counted", where="memory",
            allowed="parameters, bytes", hint="give a budget of bytes, and leave room for the cache",
        )  # fmt: skip
    cache = 0
    for layer in kv_cache(draft, stack).layers:
        if layer.bytes_per_token is None:
            raise SelectionError(
                "the KV cache of this model is not known", where="memory", allowed="parameters, bytes",
                hint="give a budget of bytes, and leave room for the cache",
            )  # fmt: skip
        cache += layer.bytes_per_token * min(budget.tokens, layer.window or budget.tokens)
    return plan.nbytes + cache


def limit_of(budget: Budget, draft: Draft, stack: str | None) -> float:
    """Return the bound in units, of a budget for a draft as it is before."""
    return budget.amount * size_of(budget, draft, stack) if budget.relative else budget.amount


def contradiction(selection: Selection, chosen: Sequence[int], draft: Draft, stack: str | None) -> str:
    """Return that layers which went do not meet a budget, in words; empty where they do, or nothing can be told."""
    term = budget_term(selection)
    budget = parse_budget(term.count) if term is not None else None
    if budget is None or budget.measured:
        return ""
    met = size_of(budget, without(draft, stack, chosen), stack) <= limit_of(budget, draft, stack)
    return "" if met else f"is not met: {_found(budget, draft, stack, chosen)}"


def margin_text(selection: Selection, chosen: Sequence[int], draft: Draft, stack: str | None) -> str:
    """Say what a budget comes to without the chosen layers, and how much is to spare; empty where there is none."""
    term = budget_term(selection)
    budget = parse_budget(term.count) if term is not None else None
    if budget is None or budget.measured:
        return ""
    size, most = size_of(budget, without(draft, stack, chosen), stack), limit_of(budget, draft, stack)
    return f"{_found(budget, draft, stack, chosen)}, {most - size:,.0f} to spare"


def _found(budget: Budget, draft: Draft, stack: str | None, gone: Sequence[int]) -> str:
    what = "parameters" if budget.kind == "parameters" else "bytes"
    size, most = size_of(budget, without(draft, stack, gone), stack), limit_of(budget, draft, stack)
    at = f" with the KV cache of {budget.tokens:,} tokens" if budget.kind == "memory" else ""
    return f"{size:,.0f} of at most {most:,.0f} {what}{at}"
