from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.recipe.objective import objectives, parse_objective
from surgeon.core.recipe.recipe import recipe_from_builtins, recipe_to_builtins
from surgeon.errors import RecipeError
from surgeon.objectives.distill import Distillation
from surgeon.objectives.dpo import DirectPreference
from surgeon.objectives.npo import NegativePreference
from surgeon.objectives.sft import SupervisedFineTuning
from tests.objectives.batches import Batch, batch

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=3)


def ratios_of(seen: Batch) -> list[list[float]]:
    """Return each sequence's log-ratios at its labels, as Python floats."""
    found = (seen.log_probs_BT - seen.reference_BT).double()
    return [found[row][seen.labels_BT[row] >= 0].tolist() for row in range(len(found))]


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def test_every_objective_is_found_with_what_it_needs() -> None:
    """One per file, by its name in recipes."""
    found = objectives()
    needs = {name: (kind.rows, kind.reference, kind.teacher) for name, kind in found.items()}
    assert needs == {
        "lm": ("text", False, False),
        "sft": ("answers", False, False),
        "dpo": ("pairs", True, False),
        "npo": ("rejected", True, False),
        "distill": ("text", False, True),
        "blockwise": ("text", False, False),
    }
    assert all(kind.summary for kind in found.values())


@settings(deadline=None)
@given(lengths)
def test_fine_tuning_is_the_mean_over_all_labels(counts: list[int]) -> None:
    """Over labels, not over sequences: a long answer weighs more; what is not labelled weighs nothing."""
    seen = batch(counts)
    loss = SupervisedFineTuning().loss(seen)
    kept = seen.labels_BT >= 0
    expected = torch.nn.functional.cross_entropy(seen.logits_BTV[kept].double(), seen.labels_BT[kept])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert seen.logits_BTV.grad is not None
    assert not seen.logits_BTV.grad[~kept].any()


@settings(deadline=None)
@given(
    raw=st.sampled_from(["lm", "sft", "dpo", {"dpo": {"keep_rejected": 0.3}}, "npo", "distill"]),
    counts=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=2, max_size=5),
    cut=st.integers(1, 4),
    weighted=st.booleans(),
)
def test_parts_of_a_batch_come_to_the_whole(
    raw: object, counts: list[tuple[int, int]], cut: int, weighted: bool
) -> None:
    """However uneven the answers: so gradient accumulation changes nothing."""
    objective = parse_objective(raw).objective
    seen, pairs = batch([left for left, _ in counts] + [right for _, right in counts]), len(counts)
    if weighted:
        seen.weights_BT = torch.rand(seen.labels_BT.shape, generator=torch.Generator().manual_seed(2))
    at = min(cut, pairs - 1)
    spans = (range(at), range(at, pairs))
    parts = [seen.rows([*span, *(pairs + one for one in span)]) for span in spans]
    weights = [objective.weight(part) for part in parts]
    whole = sum(weights) or 1.0
    summed = sum(weight * objective.loss(part).item() for weight, part in zip(weights, parts, strict=True)) / whole
    assert summed == pytest.approx(objective.loss(seen).item(), rel=1e-4, abs=1e-6)


def preference_by_hand(seen: Batch, beta: float, share: float | None) -> float:
    """Return DPO's loss in Python floats, sorting where the objective selects."""
    ratios = ratios_of(seen)
    pairs = len(ratios) // 2
    total = 0.0
    for chosen, rejected in zip(ratios[:pairs], ratios[pairs:], strict=True):
        count = len(rejected) if share is None else max(1, math.ceil(round(share * len(rejected), 6)))
        total -= log_sigmoid(beta * (sum(chosen) - sum(sorted(rejected)[:count])))
    return total / pairs


@settings(deadline=None)
@given(
    counts=lengths,
    other=st.integers(1, 30),
    beta=st.sampled_from([0.05, 0.1, 1.0]),
    share=st.sampled_from([None, 0.1, 0.25, 0.3, 1.0]),
)
def test_preference_is_the_papers_formula(counts: list[int], other: int, beta: float, share: float | None) -> None:
    """With all tokens of the rejected answers, or with the share whose log-ratio is lowest, at least one of each."""
    seen = batch([*counts, *(min(30, count + other) for count in counts)])
    loss = DirectPreference(beta=beta, keep_rejected=share).loss(seen)
    assert loss.item() == pytest.approx(preference_by_hand(seen, beta, share), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (30, 3)])
def test_only_the_kept_tokens_of_a_rejected_answer_get_a_gradient(count: int, kept: int) -> None:
    """A tenth of them, rounded up: 3 of 30, though 0.1 * 30 is a little more than 3; all of the chosen one."""
    seen = batch([5, count])
    DirectPreference(keep_rejected=0.1).loss(seen).backward()  # type: ignore[no-untyped-call]
    assert seen.logits_BTV.grad is not None
    moved = seen.logits_BTV.grad.abs().sum(-1) > 0
    assert moved.sum(1).tolist() == [5, kept]
    ratios = (seen.log_probs_BT - seen.reference_BT).detach()[1]
    dropped = ratios[(seen.labels_BT[1] >= 0) & ~moved[1]].tolist()
    assert ratios[moved[1]].max().item() <= min(dropped, default=math.inf)


def test_at_the_first_step_so_many_tokens_are_kept_and_no_more() -> None:
    """The model is the reference then and all log-ratios are 0: a threshold would keep every token."""
    seen = batch([4, 20])
    seen.reference_BTV = seen.logits_BTV.detach()
    DirectPreference(keep_rejected=0.1).loss(seen).backward()  # type: ignore[no-untyped-call]
    assert seen.logits_BTV.grad is not None
    assert (seen.logits_BTV.grad[1].abs().sum(-1) > 0).sum() == 2


def test_a_tie_is_half_right() -> None:
    """Before training nothing is preferred: accuracy one half, margin 0."""
    seen = batch([4, 3, 5, 2])
    seen.reference_BTV = seen.logits_BTV.detach()
    assert DirectPreference().figures(seen) == {"accuracy": 0.5, "margin": 0.0}


def test_accuracy_and_margin_look_at_all_tokens() -> None:
    """So that courses with and without token selection can be compared."""
    seen = batch([4, 3, 5, 20])
    ratios = [sum(one) for one in ratios_of(seen)]
    margins = [0.2 * (ratios[pair] - ratios[2 + pair]) for pair in range(2)]
    figures = DirectPreference(beta=0.2, keep_rejected=0.1).figures(seen)
    assert figures == DirectPreference(beta=0.2).figures(seen)
    assert figures["margin"] == pytest.approx(sum(margins) / 2, rel=1e-5)
    assert figures["accuracy"] == sum(margin > 0 for margin in margins) / 2


@settings(deadline=None)
@given(
    counts=lengths,
    threshold=st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]),
    weighted=st.booleans(),
    beta=st.sampled_from([0.1, 1.0]),
)
def test_forgetting_is_the_papers_formula(
    counts: list[int], threshold: float | None, weighted: bool, beta: float
) -> None:
    """Tokens that a rewriter would not keep, weighed by its rewards as they are, or all of them alike."""
    seen = batch(counts)
    if weighted:
        seen.weights_BT = torch.rand(seen.labels_BT.shape, generator=torch.Generator().manual_seed(1))
    total, number = 0.0, 0
    for row, ratios in enumerate(ratios_of(seen)):
        rewards = seen.weights_BT[row][seen.labels_BT[row] >= 0].tolist() if seen.weights_BT is not None else None
        for at, ratio in enumerate(ratios):
            weight = 1.0 if rewards is None else rewards[at] if threshold is None else float(rewards[at] < threshold)
            total -= weight * log_sigmoid(-beta * ratio)
            number += weight != 0
    loss = NegativePreference(beta=beta, threshold=threshold).loss(seen)
    assert loss.item() == pytest.approx(total / max(number, 1), rel=1e-4, abs=1e-6)


def test_nothing_to_forget_is_no_loss_and_no_gradient() -> None:
    """And no division by zero."""
    seen = batch([3, 4])
    seen.weights_BT = torch.ones(seen.labels_BT.shape)
    loss = NegativePreference().loss(seen)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert seen.logits_BTV.grad is not None
    assert not seen.logits_BTV.grad.any()
    assert NegativePreference().figures(seen) == {"log_ratio": 0.0}


def test_a_step_down_the_loss_makes_targeted_tokens_less_likely_and_leaves_the_others() -> None:
    """What forgetting is for."""
    seen = batch([6])
    seen.weights_BT = (torch.arange(seen.labels_BT.shape[1])[None] % 2).float()
    before = seen.log_probs_BT.detach()
    NegativePreference().loss(seen).backward()  # type: ignore[no-untyped-call]
    assert seen.logits_BTV.grad is not None
    seen.logits_BTV = seen.logits_BTV.detach() - seen.logits_BTV.grad
    del seen.log_probs_BT
    change = seen.log_probs_BT - before
    targeted = (seen.weights_BT < 0.5) & (seen.labels_BT >= 0)
    assert (change[targeted] < 0).all()
    assert not change[~targeted].any()


def test_forgetting_without_token_rewards_says_that_it_is_untargeted() -> None:
    """And says nothing where it is targeted; nor do the others."""
    assert "untargeted" in NegativePreference().remark(weighted=False)
    assert NegativePreference().remark(weighted=True) == ""
    assert not any(parse_objective(name).objective.remark(weighted=False) for name in objectives() if name != "npo")


@settings(deadline=None)
@given(counts=lengths, temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_distillation_is_the_divergence_from_the_teacher(counts: list[int], temperature: float) -> None:
    """KL(teacher || model) of the softened distributions, times the square of the temperature, by its definition."""
    seen = batch(counts)
    kept = seen.labels_BT >= 0
    teacher = (seen.teacher_BTV[kept].double() / temperature).softmax(-1)
    model = (seen.logits_BTV[kept].detach().double() / temperature).softmax(-1)
    expected = (teacher * (teacher / model).log()).sum(-1).mean() * temperature**2
    loss = Distillation(temperature=temperature).loss(seen)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert seen.logits_BTV.grad is not None
    assert not seen.logits_BTV.grad[~kept].any()


def test_a_model_that_is_its_teacher_has_nothing_to_learn() -> None:
    """No loss, and no gradient beyond rounding."""
    seen = batch([5, 6])
    seen.teacher_BTV = seen.logits_BTV.detach()
    loss = Distillation(temperature=2.0).loss(seen)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert seen.logits_BTV.grad is not None
    assert seen.logits_BTV.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    "raw",
    [
        "dpo",
        {"dpo": {"beta": 0.2}},
        {"npo": {"threshold": None, "rewriter": "there"}},
        {"distill": {"temperature": 2.0}},
    ],
)
def test_an_objective_survives_a_recipe(raw: object) -> None:
    """Read, written and read again, it is the same, settings included."""
    plain = {"version": 1, "base": {"model": "demo"}, "steps": [{"train": {"objective": raw, "steps": 3}}]}
    recipe = recipe_from_builtins(plain)
    assert recipe_from_builtins(recipe_to_builtins(recipe)) == recipe
    assert recipe_to_builtins(recipe)["steps"][0]["train"]["objective"] == raw


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        ("dop", "no objective"), ({"dpo": {}, "npo": {}}, "no objective"), ({"dpo": {"bete": 1}}, "bete"),
        ({"dpo": {"beta": 0}}, "beta"), ({"dpo": {"keep_rejected": 0}}, "keep_rejected"), (3, "no objective"),
        ({"npo": {"threshold": 2}}, "threshold"),
    ],
)  # fmt: skip
def test_what_is_no_objective_is_refused_with_what_is(raw: object, what: str) -> None:
    """Unknown names, unknown settings, values out of range."""
    with pytest.raises(RecipeError, match=what) as caught:
        parse_objective(raw)
    assert caught.value.allowed
