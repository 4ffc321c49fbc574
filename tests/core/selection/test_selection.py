from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.plan.draft import Identity, Layer, Original
from surgeon.core.scoring.score import Provenance, Score
from surgeon.core.selection.selection import Selection, parse_selection, select, spans
from surgeon.errors import SelectionError

COUNT = 12


def layers_of(count: int, inserted_after: tuple[int, ...] = ()) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for at in range(count):
        layers.append(Layer(str(at), Original(at), at, {}))
        if at in inserted_after:
            layers.append(Layer(f"{at}+1", Identity(Original(at)), None, {}))
    return tuple(layers)


def score_of(values: list[float]) -> Score:
    return Score(
        name="any", values={str(at): value for at, value in enumerate(values)}, provenance=Provenance(fingerprint="")
    )


def chosen(raw: Any, values: list[float] | None = None, count: int = COUNT) -> tuple[int, ...]:
    selection = parse_selection(raw)
    scores = {ranked: score_of(values or [0.0] * count) for ranked in selection.ranked()}
    return selection.positions(layers_of(count), scores)


positions = st.integers(0, COUNT - 1)
ranges = st.tuples(positions, positions).map(lambda ends: f"{min(ends)}-{max(ends)}")
ranked_texts = st.builds(
    "{} by {}".format,
    st.one_of(
        st.builds("{} {}".format, st.sampled_from(["lowest", "highest", "block"]), st.integers(1, 6)),
        st.sampled_from(["through highest", "through lowest"]),
    ),
    st.sampled_from(["block_influence", "semantic_gain(gain=log,train_at_most=3)", "lamp(kept=0.25)"]),
)
plain_texts = st.one_of(
    positions.map(str),
    ranges,
    ranges.map("original {}".format),
    st.sampled_from(["all", "first", "last", "inserted"]),
    st.builds("{} {}".format, st.sampled_from(["first", "last"]), st.integers(0, COUNT)),
)
term_lists = st.lists(st.one_of(plain_texts, ranked_texts), min_size=1, max_size=4).map(",".join)
texts = st.one_of(term_lists, term_lists.map("except {}".format))
nested = st.one_of(texts, positions, st.lists(st.one_of(positions, term_lists), min_size=1, max_size=4))
values = st.lists(st.floats(-1e6, 1e6), min_size=COUNT, max_size=COUNT)


@settings(deadline=None)
@given(nested)
def test_a_selection_prints_as_text_that_means_the_same(raw: Any) -> None:
    once = parse_selection(raw)
    again = parse_selection(str(once))
    assert again == once
    assert str(again) == str(once)
    assert hash(again) == hash(once)


@settings(deadline=None)
@given(texts, values)
def test_positions_are_sorted_unique_and_in_range(text: str, numbers: list[float]) -> None:
    found = chosen(text, numbers)
    assert list(found) == sorted(set(found))
    assert all(0 <= position < COUNT for position in found)


@settings(deadline=None)
@given(term_lists, values)
def test_except_is_the_complement(text: str, numbers: list[float]) -> None:
    inside, outside = set(chosen(text, numbers)), set(chosen(f"except {text}", numbers))
    assert inside | outside == set(range(COUNT))
    assert not inside & outside


@settings(deadline=None)
@given(
    order=st.sampled_from(["lowest", "highest", "block"]),
    count=st.integers(1, 6),
    protect=st.lists(st.one_of(positions, st.sampled_from(["first", "last", "first 2"])), max_size=3),
    numbers=values,
)
def test_a_protected_layer_is_never_chosen(order: str, count: int, protect: list[Any], numbers: list[float]) -> None:
    raw = {order: count, "by": "removal", "protect": protect}
    protected = {position for one in protect for position in chosen(one)}
    try:
        found = chosen(raw, numbers)
    except SelectionError as error:
        assert order == "block"
        assert "adjacent" in error.what
        return
    assert len(found) == count
    assert not protected & set(found)


@settings(deadline=None)
@given(values, st.integers(1, COUNT))
def test_lowest_takes_the_smallest_values_and_highest_the_largest(numbers: list[float], count: int) -> None:
    low, high = chosen(f"lowest {count} by removal", numbers), chosen(f"highest {count} by removal", numbers)
    assert sorted(numbers[at] for at in low) == sorted(numbers)[:count]
    assert sorted(numbers[at] for at in high) == sorted(numbers)[-count:]


@settings(deadline=None)
@given(values, st.integers(1, COUNT))
def test_a_block_is_adjacent_and_has_the_lowest_sum(numbers: list[float], count: int) -> None:
    found = chosen(f"block {count} by removal", numbers)
    assert found == tuple(range(found[0], found[0] + count))
    least = min(sum(numbers[at : at + count]) for at in range(COUNT - count + 1))
    assert sum(numbers[at] for at in found) == pytest.approx(least, abs=1e-6)


@settings(deadline=None)
@given(st.sets(positions, min_size=1))
def test_spans_and_select_are_inverse(wanted: set[int]) -> None:
    assert chosen(spans(sorted(wanted))) == select(*wanted).positions(layers_of(COUNT)) == tuple(sorted(wanted))


@settings(deadline=None)
@given(values, st.sampled_from(["highest", "lowest"]), st.sets(positions, max_size=COUNT - 1))
def test_through_ends_at_the_extreme_layer_that_is_not_protected(
    numbers: list[float], which: str, protected: set[int]
) -> None:
    free = [at for at in range(COUNT) if at not in protected]
    found = chosen({"through": which, "by": "removal", "protect": sorted(protected)}, numbers)
    assert list(found) == free[: len(found)]
    assert numbers[found[-1]] == (max if which == "highest" else min)(numbers[at] for at in free)


def test_through_ends_where_the_score_says_that_freezing_ends() -> None:
    selection = parse_selection("through highest by semantic_gain(train_at_most=9)")
    (ranked,) = selection.ranked()
    told = Score(
        name="semantic_gain", values={str(at): float(at) for at in range(COUNT)},
        details={"end_of_freezing": 4}, provenance=Provenance(fingerprint=""),
    )  # fmt: skip
    assert selection.positions(layers_of(COUNT), {ranked: told}) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lowest 4 by block_removal(longest=4)", {"lowest": 4, "by": {"block_removal": {"longest": 4}}}),
        ("lowest 4 by block_removal(longest=8)", "lowest 4 by block_removal"),  # as usual
        ("lowest 4 by removal", {"lowest": 4, "by": {"removal": None}}),
        ("lowest 4 by lamp( kept = 0.25 )", {"lowest": 4, "by": "lamp(kept=0.25)"}),
        (
            "first, through highest by semantic_gain(train_at_most=2,gain=log)",
            ["first", {"through": "highest", "by": {"semantic_gain": {"gain": "log", "train_at_most": 2}}}],
        ),
    ],
)
def test_settings_of_a_score_mean_the_same_as_text_and_as_a_mapping(one: Any, other: Any) -> None:
    assert parse_selection(one) == parse_selection(other)
    assert hash(parse_selection(one)) == hash(parse_selection(other))


def test_other_settings_are_another_selection() -> None:
    texts = ["lowest 4 by block_removal", "lowest 4 by block_removal(longest=4)", "lowest 4 by removal"]
    assert len({parse_selection(text) for text in texts}) == 3


def test_percent_counts_against_all_layers() -> None:
    assert len(chosen("lowest 25% by removal")) == 3


def test_original_positions_follow_the_layers_of_the_base() -> None:
    layers = layers_of(4, inserted_after=(1,))
    assert parse_selection("original 2-3").positions(layers) == (3, 4)
    assert parse_selection("inserted").positions(layers) == (2,)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("12", "12 is out of range"),
        ("5-3", "runs backwards"),
        ("first 13", "first 13 of 12"),
        ("middle", "'middle' is no selection"),
        ("", "'' is no selection"),
        ("1,,2", "'' is no selection"),
        (None, "None is no selection"),
        (True, "True is no selection"),
        (1.5, "1.5 is no selection"),
        ({"lowest": 2}, "needs `by: SCORE`"),
        ({"lowest": 2, "by": "removal", "form": 1}, "unknown key 'form'"),
        ({"first": 1, "protect": "last"}, "does not go with"),
        ({"by": "removal"}, "one of lowest"),
        ({"lowest": 13, "by": "removal"}, "asks for 13 of 12"),
        ({"lowest": -1, "by": "removal"}, "lowest: -1 is no count"),
        ("lowest 4 by block_influnce", "did you mean 'block_influence'?"),
        ("lowest 4 by all", "there is no score 'all'"),
        ("lowest 4 by removal(longest=4)", "removal has no setting 'longest'"),
        ("lowest 4 by block_removal(longest=no)", "does not fit: Expected `int`"),
        ({"lowest": 4, "by": {"block_removal": {"longest": "4"}}}, "does not fit: Expected `int`, got `str`"),
        ({"lowest": 4, "by": {"block_removal": {"longest": 0}}}, "does not fit: Expected `int` >= 1"),
        ({"lowest": 4, "by": {"block_removal": {"long": 4}}}, "block_removal has no setting 'long'"),
        ({"lowest": 4, "by": {"block_removal": 4}}, "4 are no settings"),
        ({"lowest": 4, "by": {"removal": {}, "fisher": {}}}, "is not one score"),
        ("through middle by removal", "'through middle by removal' is no selection"),
        ({"through": 4, "by": "removal"}, "through: 4 is no count"),
        ({"through": "highest"}, "'through' needs `by: SCORE`"),
        ({"through": "highest", "by": "removal", "protect": "all"}, "all layers are protected"),
        ({"lowest": 2, "by": "removal", "data": 3}, "data: 3 is no name"),
        ([{"except": "1"}, 5], "two meanings"),
        ("original 0-999999999", "original layer 12 is not in the model"),
        ("9" * 5000, "is no selection"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(raw: Any, said: str) -> None:
    with pytest.raises(SelectionError) as caught:
        chosen(raw)
    assert said in caught.value.what


def test_a_score_that_was_not_measured_is_asked_for_by_name() -> None:
    with pytest.raises(SelectionError, match="removal has not been measured here"):
        parse_selection("lowest 2 by removal").positions(layers_of(COUNT))


def test_a_layer_without_a_finite_value_is_named() -> None:
    with pytest.raises(SelectionError, match="any has no value for layer 3"):
        chosen("lowest 2 by removal", [0.0, 1.0, 2.0, float("nan"), *[1.0] * 8])


def test_a_selection_equals_only_selections_of_the_same_meaning() -> None:
    assert parse_selection("3,4") == parse_selection([3, "4"])
    assert parse_selection("3") != parse_selection("4")
    assert parse_selection("3") != "3"
    assert repr(parse_selection("3")) == "Selection(3)"
    assert isinstance(parse_selection(parse_selection("3")), Selection)
