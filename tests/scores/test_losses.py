"""Scores of losses against naive whole forwards of rearranged models, and of gradients against autograd by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.scoring.layer_trie import Trie
from surgeon.core.scoring.score import Score
from surgeon.core.scoring.score_kinds import LayerCall, SweepScore, score_kinds
from tests.backend.tiny_models import LAYERS, layers_of, load_plainly, reference_logits
from tests.scores.sample_models import MEASURED_FAMILIES, Array, patient, scores, text_of


def naive_losses(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor) -> Array:
    """Mean negative log-likelihood of each sequence from position 2 on, in float64."""
    logs = logits_BTV.double().log_softmax(-1)[:, 1:-1]
    return np.asarray(-logs.gather(-1, tokens_BT[:, 2:, None])[..., 0].mean(1).numpy())


class Naive:
    """Whole forwards of a plainly loaded model with its layers in any order."""

    def __init__(self, base: Path, family: str) -> None:
        self.model = load_plainly(base)
        self.family = family
        self.tokens_BT = text_of(base).tokens_BT
        self.base = self.loss(range(LAYERS))

    def loss(self, order: Any) -> Array:
        logits = reference_logits(self.model, self.family, list(order), self.tokens_BT)
        return naive_losses(logits, self.tokens_BT)

    def rise(self, order: Any) -> Array:
        return self.loss(order) - self.base


def agrees(score: Score, layer: int, naive: Array, base: Array) -> None:
    """Value and standard error are those of the naive differences, to 1e-5 of the loss."""
    tolerance = 1e-5 * float(np.abs(base).mean())
    assert score.values[str(layer)] == pytest.approx(naive.mean(), abs=tolerance)
    assert score.errors[str(layer)] == pytest.approx(naive.std(ddof=1) / np.sqrt(len(naive)), abs=tolerance)


@pytest.mark.parametrize("family", MEASURED_FAMILIES)
def test_a_sweep_finds_what_the_naive_loop_finds(family: str, tmp_path: Path) -> None:
    """Removal, expansion and removal of runs, all in one sweep."""
    base = patient(family, tmp_path / "base")
    naive = Naive(base, family)
    found = scores(base, "removal,expansion,block_removal(longest=3)")
    for layer in range(LAYERS):
        gone = naive.rise(one for one in range(LAYERS) if one != layer)
        agrees(found["removal"], layer, gone, naive.base)
        agrees(found["block_removal"], layer, gone, naive.base)
        twice = naive.rise(sorted([*range(LAYERS), layer]))
        agrees(found["expansion"], layer, twice, naive.base)
    blocks = found["block_removal"].blocks
    assert sorted(blocks) == [1, 2, 3]
    for length, values in blocks.items():
        rises = [
            naive.rise([*range(first), *range(first + length, LAYERS)]).mean() for first in range(LAYERS - length + 1)
        ]
        assert np.allclose(values, rises, atol=1e-5 * naive.base.mean())
    assert found["block_removal"].details["base_loss"] == pytest.approx(naive.base.mean(), rel=1e-5)


def naive_silenced(base: Path, gone: set[tuple[int, str]], tokens_BT: torch.Tensor) -> Array:
    """Zero the sublayers' outputs in a Llama by zeroing what they are made with."""
    model = load_plainly(base)
    with torch.inference_mode():
        for layer, sublayer in gone:
            part = model.model.layers[layer]
            (part.self_attn.o_proj if sublayer == "attention" else part.mlp.down_proj).weight.zero_()
        return naive_losses(model(input_ids=tokens_BT, use_cache=False).logits, tokens_BT)


def test_shapley_averages_over_windows_of_neighbours(tmp_path: Path) -> None:
    """Attention and MLP separately, each with its standard error, as a naive loop over windows has it."""
    base = patient("llama", tmp_path / "base")
    tokens_BT = text_of(base).tokens_BT
    score = scores(base, "shapley(longest=2)")["shapley"]
    players = [(layer, part) for layer in range(LAYERS) for part in ("attention", "mlp")]
    whole = naive_silenced(base, set(), tokens_BT)
    alone = [naive_silenced(base, {player}, tokens_BT) for player in players]
    pairs = [naive_silenced(base, set(pair), tokens_BT) for pair in pairwise(players)]
    shares = []
    for number, one in enumerate(alone):
        gains = [one - whole]
        if number + 1 < len(players):
            gains.append(pairs[number] - alone[number + 1])
        if number:
            gains.append(pairs[number - 1] - alone[number - 1])
        shares.append(np.mean(gains, axis=0))
    for layer in range(LAYERS):
        agrees(score, layer, shares[2 * layer] + shares[2 * layer + 1], whole)
    assert np.allclose(score.details["attention"], [one.mean() for one in shares[::2]], atol=1e-5 * whole.mean())
    assert np.allclose(score.details["mlp"], [one.mean() for one in shares[1::2]], atol=1e-5 * whole.mean())


@pytest.mark.parametrize("family", MEASURED_FAMILIES)
def test_sublayers_can_be_silenced_in_every_family(family: str, tmp_path: Path) -> None:
    """A run without any sublayer at all is the model with no layers."""
    base = patient(family, tmp_path / "base")
    assert len(scores(base, "shapley(longest=1)")["shapley"].details["mlp"]) == LAYERS


def test_a_trie_runs_shared_beginnings_once() -> None:
    """Counted by hand: the whole model, and for each removed layer the tail behind it."""
    kinds = score_kinds()
    layers = 30
    removal = kinds["removal"]()
    assert isinstance(removal, SweepScore)
    trie = Trie(removal.sequences(layers))
    assert trie.layer_forwards == layers + sum(layers - 1 - gone for gone in range(layers))
    expansion = kinds["expansion"]()
    assert isinstance(expansion, SweepScore)
    assert Trie(expansion.sequences(layers)).layer_forwards == layers + sum(layers - at for at in range(layers))
    paths = {*removal.sequences(layers).values(), *expansion.sequences(layers).values()}
    both = {f"{number}": path for number, path in enumerate(paths)}
    assert Trie(both).layer_forwards == layers + sum(2 * (layers - at) - 1 for at in range(layers))


def test_a_sequence_that_runs_backwards_waits_for_another_walk() -> None:
    """Its beginning is shared; what is behind the step back is a walk of its own, and is kept until then."""
    twice = tuple(map(LayerCall, (0, 1, 2, 1, 2, 3)))
    trie = Trie({"base": tuple(map(LayerCall, range(4))), "twice": twice})
    assert (trie.walks, trie.layer_forwards) == (2, 4 + 3)
    (third,) = trie.at(2)
    assert [parent for _, parent, _ in trie.at(1, 1)] == [third[0]]
    assert third[0] in trie.wanted_after(3)
    assert third[0] not in trie.wanted_after(1, 1)


def test_every_run_that_is_run_twice_costs_what_whole_forwards_of_the_rearranged_model_say(tmp_path: Path) -> None:
    base = patient("llama", tmp_path / "base")
    naive = Naive(base, "llama")
    found = scores(base, "block_repeat")["block_repeat"]
    runs = {
        f"{first}-{last}": naive.rise([*range(last + 1), *range(first, LAYERS)])
        for first in range(LAYERS)
        for last in range(first, LAYERS)
    }
    tolerance = 1e-5 * naive.base.mean()
    assert found.details["runs"].keys() == runs.keys()
    for name, rise in runs.items():
        value, error = found.details["runs"][name]
        assert value == pytest.approx(rise.mean(), abs=tolerance)
        assert error == pytest.approx(rise.std(ddof=1) / np.sqrt(len(rise)), abs=tolerance)
    for layer in range(LAYERS):
        within = [rise.mean() for name, rise in runs.items() if layer in range(*_ends(name))]
        assert found.values[str(layer)] == pytest.approx(min(within), abs=tolerance)


def _ends(name: str) -> tuple[int, int]:
    first, last = map(int, name.split("-"))
    return first, last + 1


def test_few_forwards_go_from_coarse_to_fine_and_are_kept_to(tmp_path: Path) -> None:
    """Every measured run has the value that it has where all are measured; no more forwards are taken than given."""
    base = patient("llama", tmp_path / "base")
    whole = scores(base, "block_repeat")["block_repeat"].details["runs"]
    few = scores(base, "block_repeat(forwards=8)")["block_repeat"]
    measured = few.details["runs"]
    assert 2 <= len(measured) < len(whole)
    for name, (value, _) in measured.items():
        assert value == pytest.approx(whole[name][0], abs=1e-4)
    forwards = (LAYERS + sum(LAYERS - int(name.split("-")[0]) for name in measured)) / LAYERS
    assert forwards <= 8


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(8, 300), st.randoms())
def test_runs_are_proposed_once_each_and_lie_within_the_model(layers: int, forwards: int, rng: Any) -> None:
    kind = score_kinds()["block_repeat"](forwards=forwards)
    assert isinstance(kind, SweepScore)
    asked = dict(kind.sequences(layers))
    losses = {name: [rng.random()] for name in asked}
    for _ in range(200):
        more = kind.more_sequences(losses, layers)
        assert not more.keys() & asked.keys()
        asked |= more
        losses |= {name: [rng.random()] for name in more}
        if not more:
            break
    for path in asked.values():
        assert {call.layer for call in path} == set(range(layers))
        assert sum(after.layer < before.layer + 1 for before, after in pairwise(path)) <= 1
    assert all(math.isfinite(one.value) for one in kind.values(losses, layers).values.values())


def naive_gradients(base: Path, family: str) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Weight and gradient of every matrix, for each sequence's loss."""
    model = load_plainly(base)
    found = []
    for tokens_T in text_of(base).tokens_BT:
        model.zero_grad()
        logits = model(input_ids=tokens_T[None], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, 1:-1], tokens_T[2:])
        torch.autograd.backward(loss)
        layers = layers_of(model, family)
        found.append(
            {
                f"{number}.{name}": (weight.detach().clone(), weight.grad.clone())
                for number, layer in enumerate(layers)
                for name, weight in layer.named_parameters()
                if weight.dim() > 1 and weight.grad is not None
            }
        )
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_gradient_scores_are_those_of_autograd_by_hand(family: str, tmp_path: Path) -> None:
    """|g w| and g squared, per matrix and summed per layer, averaged over sequences with a standard error."""
    base = patient(family, tmp_path / "base")
    found = scores(base, "taylor,fisher")
    by_sequence = naive_gradients(base, family)
    formulas: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
        "taylor": lambda weight, gradient: float((weight * gradient).abs().sum()),
        "fisher": lambda weight, gradient: float(gradient.square().sum()),
    }
    for name, formula in formulas.items():
        score = found[name]
        for layer in map(str, range(LAYERS)):
            rows = [
                {full: formula(*pair) for full, pair in one.items() if full.startswith(f"{layer}.")}
                for one in by_sequence
            ]
            sums = np.array([sum(row.values()) for row in rows])
            assert score.values[layer] == pytest.approx(sums.mean(), rel=1e-4)
            assert score.errors[layer] == pytest.approx(sums.std(ddof=1) / np.sqrt(len(sums)), rel=1e-3)
            for matrix, value in score.matrices[layer].items():
                expected = np.mean([row[f"{layer}.{matrix}"] for row in rows])
                assert value == pytest.approx(expected, rel=1e-4)


def test_the_model_is_left_without_gradients(tmp_path: Path) -> None:
    """It serves the next job."""
    from surgeon.backend.model.loading import resident_model
    from tests.scores.sample_models import open_draft

    base = patient("llama", tmp_path / "base")
    scores(base, "fisher")
    model = resident_model(open_draft(base).structure, torch.float32, torch.device("cpu")).model
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_on_a_real_model_the_ends_and_layer_eleven_cost_most_whatever_their_influence(demo_model: Path) -> None:
    """Layers 0, 1, 29 and 11 of SmolLM2-135M are the worst to lose; block influence calls 11 redundant."""
    found = scores(demo_model, "removal,block_influence", sequences=4, length=256, batch_tokens=1024)
    removal, influence = found["removal"], found["block_influence"]
    assert set(removal.ranking(list(removal.values))[-4:]) == {"0", "1", "29", "11"}
    assert influence.ranking(list(influence.values)).index("11") < 10
