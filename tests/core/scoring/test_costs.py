"""What scores cost, in forwards of the whole model, against a count by hand."""

from __future__ import annotations

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.scoring.costs import cost_text, expected_forwards, head_in_layers
from surgeon.core.scoring.requests import requested_scores
from tests.cli.tiny_checkpoints import tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return draft_of(read_structure(open_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "base"))))


def whole_and_without_each(layers: int) -> int:
    """Count the layer forwards of removals: the whole model, and behind each gap the layers that are left."""
    return layers + sum(layers - 1 - gone for gone in range(layers))


def test_a_sweep_costs_its_distinct_prefixes_and_a_head_for_each_sequence(base: Draft) -> None:
    layers, head = len(base.layers()), head_in_layers(base)
    found = expected_forwards(requested_scores(["removal"]), base)
    expected = (whole_and_without_each(layers) + (layers + 1) * head) / (layers + head)
    assert found == {"removal": pytest.approx(expected)}


def test_the_head_is_told_in_units_of_a_layer_by_weights(base: Draft) -> None:
    structure = base.structure
    layer = sum(tensor.parameters for tensor in structure.stack().layers[0].values())
    head = structure.outside["model.embed_tokens.weight"].parameters
    assert head_in_layers(base) == pytest.approx(head / layer)


def test_what_has_been_measured_for_one_score_costs_nothing_for_the_next(base: Draft) -> None:
    alone = expected_forwards(requested_scores(["block_removal"]), base)["block_removal"]
    both = expected_forwards(requested_scores(["block_removal", "removal"]), base)
    assert both["removal"] + both["block_removal"] < alone + both["removal"]
    one_each = expected_forwards(requested_scores(["removal", "block_removal(longest=1)"]), base)
    assert sorted(one_each.values())[0] == 0


def test_scores_of_one_pass_share_its_forward(base: Draft) -> None:
    kinds = requested_scores(["block_influence", "angular_distance", "taylor", "fisher", "weight_norm"])
    assert expected_forwards(kinds, base) == {"activations": 1.0, "gradients": 3.0}


def test_the_cost_is_said_with_the_most_expensive_first(base: Draft) -> None:
    text = cost_text(requested_scores(["all"]), base, 3072)
    assert text.startswith("to measure: 6 of weights alone, as much as ")
    assert "forwards of 3,072 tokens (shapley " in text
    assert text.endswith("inputs 1)")


def test_what_costs_little_is_not_worth_saying(base: Draft) -> None:
    assert cost_text(requested_scores(["lamp", "block_influence", "taylor"]), base, 3072) == ""
