"""Answers that the words beside them can never come to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, base_tensors, draft_of
from surgeon.core.scoring.score import Provenance, Score
from surgeon.core.selection.matrix_selection import parse_matrix_selection
from surgeon.core.selection.outcomes import layer_contradiction
from surgeon.core.selection.selection import parse_selection
from surgeon.errors import SelectionError
from tests.cli.tiny_checkpoints import tiny_llama

LAYERS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return draft_of(read_structure(open_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "llama", LAYERS))))


@pytest.mark.parametrize(
    ("text", "chosen", "says"),
    [
        ("0-2", [4], "is 0-2"),
        ("except 0-2", [0, 1, 2], "is 3-5"),
        ("inserted", [1], "is none"),
        ("lowest 4 by removal", [4], "is 4 of them"),
        ("lowest 1 by removal", [4, 5], "is 1 of them"),
        ("highest 50% by removal", [4, 5], "is 3 of them"),
        ("block 2 by removal", [1, 3], "is adjacent layers"),
        ("through highest by removal", [1, 2], "is a layer and all before it"),
        ("except lowest 1 by removal", [1, 2], "is 1 of them"),
        ("0, lowest 1 by removal", [1, 2], "is 1 to 2 of them, 0 among them"),
        ("0, lowest 1 by removal", [0, 1, 2], "is 1 to 2 of them, 0 among them"),
        ("lowest 2 by removal, highest 3 by taylor", [0], "is 3 to 5 of them"),
        ({"lowest": 2, "by": "removal", "protect": ["first", "last"]}, [0, 1], "leaves out 0,5"),
        ({"block": 2, "by": "removal", "protect": 2}, [2, 3], "leaves out 2"),
    ],
)
def test_what_words_never_come_to_is_told(base: Draft, text: Any, chosen: list[int], says: str) -> None:
    assert layer_contradiction(parse_selection(text), chosen, base.layers()) == says


def test_layers_that_are_not_there_are_refused_as_ever(base: Draft) -> None:
    with pytest.raises(SelectionError, match="9 is out of range"):
        layer_contradiction(parse_selection("9"), [4], base.layers())


values = st.lists(st.integers(-5, 5), min_size=LAYERS, max_size=LAYERS)
counts = st.one_of(st.integers(0, 2), st.sampled_from(["0%", "25%", "34%"]))
ranked: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        lambda head, count, protect: {head: count, "by": "removal", **({"protect": protect} if protect else {})},
        st.sampled_from(["lowest", "highest", "block"]), counts, st.lists(st.sampled_from(["first", "last"])),
    ),
    st.sampled_from([{"through": "highest", "by": "removal"}, {"through": "lowest", "by": "removal", "protect": 0}]),
)  # fmt: skip
wishes = st.one_of(
    ranked, ranked.map(lambda one: {"except": one}), st.lists(st.one_of(ranked, st.integers(0, 5)), min_size=1),
    st.sampled_from(["all", "0-3", "except 1", "last 2"]),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(wish=wishes, numbers=values)
def test_what_any_scores_come_to_is_never_a_contradiction(base: Draft, wish: Any, numbers: list[int]) -> None:
    selection = parse_selection(wish)
    keyed = {layer.key: float(number) for layer, number in zip(base.layers(), numbers, strict=True)}
    score = Score(name="removal", values=keyed, provenance=Provenance(fingerprint=""))
    chosen = selection.positions(base.layers(), dict.fromkeys(selection.ranked(), score))
    assert layer_contradiction(selection, chosen, base.layers()) == ""


@pytest.mark.parametrize(
    ("text", "chosen", "says"),
    [
        ("3.mlp.up", ["3.mlp.down"], "is 3.mlp.up"),
        ("lowest 2 by taylor", ["3.mlp.down"], "is 2 of them"),
        ("lowest 25% by taylor", ["3.mlp.down"] * 2 + [f"{at}.mlp.up" for at in range(6)], ""),
        ("lowest 5% by taylor", [f"{at}.mlp.up" for at in range(6)], "is 0 to 2 of them"),
        ("0.mlp.up, lowest 1 by taylor", ["3.mlp.down", "3.mlp.up"], "is 1 to 2 of them"),
        ("lowest 1 by taylor", ["3.mlp.sideways"], "is matrices of the model, and 3.mlp.sideways is none"),
    ],
)
def test_so_it_is_with_matrices(base: Draft, text: str, chosen: list[str], says: str) -> None:
    assert parse_matrix_selection(text).contradiction(chosen, base, None) == says


@settings(deadline=None)
@given(
    wish=st.sampled_from(["lowest 25% by taylor", "highest 3 by taylor", "0-1.mlp, lowest 2 by taylor", "all.mlp"]),
    numbers=st.lists(st.integers(-5, 5), min_size=42, max_size=42), lacking=st.sampled_from(["none", "mlp"]),
)  # fmt: skip
def test_what_any_scores_come_to_is_no_contradiction_of_matrices(
    base: Draft, wish: str, numbers: list[int], lacking: str
) -> None:
    selection, left = parse_matrix_selection(wish), iter(numbers)
    matrices = {
        layer.key: {
            name: float(next(left))
            for name, one in base_tensors(layer.source, base.structure.stack()).items()
            if len(one.shape) > 1 and lacking not in name
        }
        for layer in base.layers()
    }
    score = Score(name="taylor", values={}, matrices=matrices, provenance=Provenance(fingerprint=""))
    chosen = selection.spots(base, None, dict.fromkeys(selection.ranked(), score))
    assert selection.contradiction(chosen, base, None) == ""
